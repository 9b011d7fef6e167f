"""Models as C libraries: `secateur_model`. The folder is printed by `secateur bazel-dir`."""

# Links in a sandbox lead out of a model's folder, which its external weights may not: files are
# copied first.
_COMMAND = """
set -e
root=$PWD made=$1 count=$2
shift 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
while [ "$count" -gt 0 ]; do
  mkdir -p "$folder/$(dirname "$1")"
  cp -RL "$1" "$folder/$1"
  shift
  count=$((count - 1))
done
cd "$folder"
"$@" -o "$root/$made" >/dev/null
"""

def _secateur_model_impl(ctx):
    name = ctx.attr.library_name or ctx.label.name
    if ctx.file.recipe == None and not ctx.attr.target:
        fail("target is missing: a machine that 'secateur targets' lists, or a recipe")
    folder = ctx.label.name + ".files"
    made = {}
    for kind, file in {
        "header": name + ".h",
        "cpp_header": name + ".hpp",
        "archive": "lib" + name + ".a",
        "shared": "lib" + name + ".so",
        "python": name + ".py",
        "description": name + ".json",
        "pkg_config": name + ".pc",
    }.items():
        made[kind] = ctx.actions.declare_file(folder + "/" + file)
    if ctx.attr.weights_apart:
        made["weights"] = ctx.actions.declare_file(folder + "/" + name + ".weights")

    arguments = ctx.actions.args().add(ctx.attr.secateur)
    inputs = [ctx.file.model] + ctx.files.data
    if ctx.file.recipe != None:
        arguments.add("optimize").add(ctx.file.model).add("--recipe", ctx.file.recipe)
        inputs.append(ctx.file.recipe)
    else:
        arguments.add("compile").add(ctx.file.model)
    if ctx.attr.target:
        arguments.add("--target", ctx.attr.target)
    arguments.add("--format", "library").add("--name", name)
    if ctx.attr.threads:
        arguments.add("--library-threads", ctx.attr.threads)
    if ctx.file.labels != None:
        arguments.add("--labels", ctx.file.labels)
        inputs.append(ctx.file.labels)
    if ctx.attr.weights_apart:
        arguments.add("--weights-apart")
    if ctx.attr.no_cache:
        arguments.add("--no-cache")
    arguments.add_all(ctx.attr.options)

    copied = ctx.actions.args().add(made["header"].dirname).add(len(inputs)).add_all(inputs)
    ctx.actions.run_shell(
        inputs = inputs,
        outputs = made.values(),
        arguments = [copied, arguments],
        command = _COMMAND,
        mnemonic = "Secateur",
        progress_message = "Compiling model %s" % ctx.label,
        use_default_shell_env = True,
    )
    return [
        DefaultInfo(files = depset(made.values())),
        OutputGroupInfo(**{kind: depset([file]) for kind, file in made.items()}),
    ]

secateur_model = rule(
    implementation = _secateur_model_impl,
    doc = """Compiles a model into a C library.

Files in the sandbox are those that are named: a model's external weights, and what a recipe names,
belong in `data`. Output groups are header, cpp_header, archive, shared, python, description,
pkg_config and weights.""",
    attrs = {
        "model": attr.label(mandatory = True, allow_single_file = [".onnx"]),
        "target": attr.string(doc = "A machine that 'secateur targets' lists."),
        "recipe": attr.label(
            allow_single_file = [".toml"],
            doc = "What 'secateur optimize' does first; without one, the model stays as it is.",
        ),
        "data": attr.label_list(allow_files = True),
        "labels": attr.label(allow_single_file = True),
        "library_name": attr.string(doc = "By which functions begin; the rule's name by default."),
        "threads": attr.string(values = ["", "none", "caller", "own"]),
        "weights_apart": attr.bool(),
        "options": attr.string_list(doc = "More options of the command."),
        "secateur": attr.string(
            default = "secateur",
            doc = "The command, by its path or found in PATH (--action_env=PATH).",
        ),
        "no_cache": attr.bool(default = True, doc = "Whether nothing outside of the sandbox is used."),
    },
)
