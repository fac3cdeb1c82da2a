"""Names that the project has left stay left, and no two public classes share a name.

The right-hand words are those of `docs/index.md`. Old names live on in one place, for reading what
earlier versions wrote: `nextstep.utils.old_names`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from nextstep.utils import old_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nextstep"
EXEMPT = {SOURCE / "utils" / "old_names.py"}

CLASSES = {
    "Eye": "Detector", "Sight": "Detections", "Seen": "Detection", "Need": "Constraint",
    "Thing": "WorldObject", "Said": "TextPart", "Shown": "ImagePart", "Kept": "AnswerStore",
    "Given": "FixedTokens", "Arena": "WeightBuffer", "Squeezed": "CompressedMatrix",
    "RoughDecoder": "LinearPreview", "Want": "PreviewDemand", "CoreWant": "SampleRequest",
    "Questions": "VelocityRequests", "Begun": "a prefilled branch", "Running": "ImageSequence",
    "Writing": "TextSequence", "Maker": "ModelFingerprint", "Computing": "RuntimeInfo",
    "Way": "AttentionKind", "Turns": "a chat mixin", "Host": "a task runner",
    "Board": "CommandQueue", "Lookahead": "JacobiDecoding", "told_plainly": "wrap_errors",
}  # fmt: skip
"""Left names of classes, and what they are called now."""

NAMES = {
    "eye": "detector", "sight": "detections", "thing": "obj", "things": "objects",
    "tidy": "grid_aligned", "tidy_share": "grid_aligned_prob", "tale": "story_events",
    "lookahead": "jacobi", "last_steps": "final_token_steps", "think": "reasoning",
    "thought": "with_reasoning", "computed_by": "backend", "maker": "fingerprint",
    "rough": "preview", "arena": "buffer", "squeezed": "compressed", "squeeze": "compress",
    "unsqueeze": "decompress", "awaited": "async_client", "wire": "protocol",
    "caption_after": "caption_last_prob", "drop_of_two": "drop_source_prob",
    "rows_per_micro": "micro_batch_rows", "leading": "rank_0_first", "met": "barrier",
    "company": "batch composition", "unlike": "heterogeneous", "pays": "use_...",
}  # fmt: skip
"""Left names of functions, arguments and fields."""

PHRASES = {
    r"\blook(?:s|ing)? ahead\b|\blookahead\b": "Jacobi decoding",
    r"\b(?:in any|of its|independent of) company\b": "batch-invariant",
    r"\bthe eye\b|\beye of its own\b": "the scorer, the detector",
    r"\bsqueez(?:e|es|ed|ing)\b": "lossless bf16 compression",
    r"\btidy\b": "grid-aligned",
    r"\bself-?thought\b|\bthink(?:s|ing)? before\b": "reasoning",
    r"\bmicroscope\b(?!\.webp)": "token uncertainty",
}
"""What pages do not say, and what they say instead."""

HISTORY = {"CHANGELOG.md", "docs/log.md", "docs/decisions", "docs/benchmarks.md"}
"""Pages that quote how things were called."""


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if path not in EXEMPT:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def public_names(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, name, whether it is a class) of what others can use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.lineno, node.name, True
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.lineno, field.target.id, False
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, False
            if not node.name.startswith("_") or node.name == "__init__":
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                yield from ((one.lineno, one.arg, False) for one in given)


def test_no_left_name_comes_back() -> None:
    found = []
    for path, tree in modules():
        for line, name, is_class in public_names(tree):
            new = CLASSES.get(name) if is_class else NAMES.get(name)
            if new:
                found.append(f"{path.relative_to(ROOT)}:{line}: '{name}' is called {new}")
    assert not found, "\n".join(found)


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules():
        for line, name, is_class in public_names(tree):
            if is_class and not name.startswith("_"):
                places[name].append(f"{path.relative_to(ROOT)}:{line}")
    assert not {name: found for name, found in places.items() if len(found) > 1}


def pages() -> Iterator[tuple[str, str]]:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        name = path.relative_to(ROOT).as_posix()
        if not any(name.startswith(one) for one in HISTORY):
            yield name, path.read_text(encoding="utf-8")


def test_pages_use_the_words_of_today() -> None:
    left = {rf"(?<![\w-]){re.escape(old)}(?![\w-])": new for old, new in old_names.OPTIONS.items()}
    old = {**old_names.SETTINGS, **old_names.RECORD}
    left |= {rf"`{name}`": new for name, new in old.items()}
    left |= {rf"`{path.rsplit('.')[-1]}`": new for path, new in old_names.RECIPE.items()}
    found = [
        f"{name}: '{match[0]}' is called {new}"
        for name, text in pages()
        for pattern, new in (PHRASES | left).items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_recipes_and_shipped_settings_use_the_keys_of_today() -> None:
    keys = {path.rsplit(".")[-1] for path in old_names.RECIPE}
    found = [
        f"{path.name}: {key}"
        for path in sorted((ROOT / "recipes").glob("*.yaml"))
        for key in keys
        if re.search(rf"(?m)^\s*{key}:", path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_modules_that_handle_tensors_open_with_a_legend_of_dimensions() -> None:
    lacking = []
    for path, tree in modules():
        signatures = (
            part
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for part in [*ast.walk(node.args), *(ast.walk(node.returns) if node.returns else ())]
        )
        handles = any(
            (isinstance(part, ast.Name) and part.id == "Tensor")
            or (isinstance(part, ast.Attribute) and part.attr in ("Tensor", "ndarray"))
            for part in signatures
        )
        if handles and "Legend:" not in (ast.get_docstring(tree) or ""):
            lacking.append(str(path.relative_to(SOURCE)))
    assert not lacking


def test_kernels_use_the_terms_of_the_field() -> None:
    left = re.compile(r"\b(?:[Ss]queez\w*|[Uu]nfold\w*|ask_near|ask_far|Pieces|Part[FIUSB])\b")
    sources = [*(SOURCE / "kernels").glob("*.h"), *(SOURCE / "kernels").glob("*.cpp")]
    assert len(sources) > 5
    assert not [(path.name, left.findall(path.read_text())) for path in sources
                if left.search(path.read_text())]  # fmt: skip
