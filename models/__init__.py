"""Models that the project makes itself: trained digits, and architectures of the zoo."""
