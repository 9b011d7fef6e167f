"""An example of a package that extends secateur through entry points."""
