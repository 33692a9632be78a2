"""The site's page of the Python modules, for pages.py: signatures from the type stubs and the Python sources, what they say from the docstrings
there and, of functions in C++, from the bindings. A public name that is not found raises KeyError, so that the site is not built."""
import ast
import pathlib
import re
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[2] / "bindings/python"
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def calls(text):
    """Every call of nanobind that defines something: what is called, the name, and the call's text between its parentheses."""
    for found in re.finditer(r"(class_<[\w:]+>[^(;]*|\.def\w*)\(", text):
        depth, at, quoted = 1, found.end(), False
        while depth:
            if text[at] == "\\":
                at += 1
            elif text[at] == '"':
                quoted = not quoted
            elif not quoted:
                depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
            at += 1
        yield found[1], text[found.end() : at - 1], text[: found.start()]


def said_in_cpp():
    """(class or "", name): the docstring, which is the last argument of a call where that is a text."""
    said = {}
    for path in sorted((ROOT / "src").glob("*.cpp")):
        kind = ""
        for what, inside, before in calls(path.read_text()):
            last = re.search(r',\s*((?:"(?:[^"\\]|\\.)*"\s*)+)$', inside)
            words = "".join(STRING.findall(last[1])).replace('\\"', '"').replace("\\n", "\n") if last else ""
            name = STRING.match(inside.partition(",")[2].strip() if what.startswith("class_") else inside.strip())
            if what.startswith("class_"):
                kind = name[1] if name else re.match(r"class_<(\w+)", what)[1]
                said.setdefault(("", kind), words)
            elif name:
                # A chain of .def belongs to the class before it; else its object is a module, or a class by its name in lower case.
                owner = re.search(r"(\w+)\s*$", before)
                said.setdefault((kind if not owner else "" if owner[1] == "m" else owner[1].capitalize(), name[1]), words)
    return said


def signature(node, of=""):
    """A function as it is called: without self, private parameters and types that say nothing."""
    arguments = node.args
    for part in (arguments.posonlyargs, arguments.args, arguments.kwonlyargs):
        for one in part:
            if one.annotation is not None and ast.unparse(one.annotation) in ("Any", "_Any", "typing.Any"):
                one.annotation = None
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args.pop(0)
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None and ast.unparse(node.returns) not in ("Any", "_Any", "None") else ""
    text = re.sub(r"\b_(Dtype|Path|Any)\b", lambda found: {"Dtype": "dtype", "Path": "path", "Any": "Any"}[found[1]], f"{of}{node.name}({ast.unparse(arguments)}){result}")
    return text.replace("_Zeros", "'auto' | 'v1' | 'v2'")


def entry(node, said, kind=""):
    """Markdown of a function or a class with its public members."""
    words = (ast.get_docstring(node) or said.get((kind, node.name), "")).replace("*", "\\*").replace("<", "&lt;")
    if isinstance(node, ast.FunctionDef):
        if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
            shown = f"{node.name}: {ast.unparse(node.returns)}" if node.returns is not None else node.name
        else:
            shown = signature(node)
        return f"- `{shown}`" + (": " + words if shown.startswith(f"{node.name}:") and words else "\n\n" + textwrap.indent(words, "    ") + "\n" if words else "")
    members = [one for one in node.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
    made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    head = f"`{signature(made[0]).replace('__init__', node.name, 1)}`\n\n" if made else ""
    fields = [f"- `{ast.unparse(one)}`" for one in node.body if isinstance(one, ast.AnnAssign) and not one.target.id.startswith("_")]
    return f"### {node.name}\n\n{head}{words}\n\n" + "\n".join(fields + [entry(one, said, node.name) for one in members]) + "\n"


def page():
    said = said_in_cpp()
    parts = ["# Python, name by name\n\nEvery public name with its signature. How they are used together: [q4 from Python](../python.md).\n"]
    for module in ("q4", "q4.torch", "q4.transformers"):
        folder = ROOT / "modules/q4"
        top = folder / {"q4": "__init__.py"}.get(module, module[3:] + ".py")
        tree = ast.parse(top.read_text())
        names = next(ast.literal_eval(one.value) for one in tree.body if isinstance(one, ast.Assign) and getattr(one.targets[0], "id", "") == "__all__")
        places = [top, folder / "_native/__init__.pyi", *sorted(folder.glob("_*.py")), folder / "errors.py"]
        known = {}
        for place in places:
            for one in ast.parse(place.read_text()).body:
                if isinstance(one, (ast.FunctionDef, ast.ClassDef)):
                    known.setdefault(one.name, one)
        parts.append(f"## {module}\n\n{(ast.get_docstring(tree) or '').split(chr(10))[0]}\n")
        public = [known[name] for name in names if name not in ("__version__", "METHODS")]
        parts += ["\n".join(entry(one, said) for one in public if isinstance(one, ast.FunctionDef)) + "\n"]
        parts += [entry(one, said) for one in public if isinstance(one, ast.ClassDef)]
    return "\n".join(parts)
