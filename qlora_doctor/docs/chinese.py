"""The Chinese pages, made from the catalogue: `python -m qlora_doctor.docs.chinese` writes docs/zh/.

The table of checks, a page for each check with what it says, and the troubleshooting page with the causes and cures of known
failures. The explanation of a check is written by hand in locale/zh_CN/checks/CODE.md; `of.json` beside those holds what its
English text was then, so that a page that lags behind is known. `--accept` says that the pages are up to date again.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qlora_doctor import i18n
from qlora_doctor.docs import OURS, can_fix, write
from qlora_doctor.logs.signatures import Signature, installed_signatures
from qlora_doctor.messages import sentences
from qlora_doctor.registry import Check, installed_checks

FAMILIES = {
    "QD0": "版本", "QD1": "加载请求", "QD2": "Hub 与网络", "QD3": "模型文件与处理器", "QD4": "GPU、CUDA 与驱动",
    "QD5": "显存、内存与磁盘", "QD6": "适配器与训练", "QD7": "数据", "QD8": "磁盘上的适配器与检查点", "QD9": "实测",
}  # fmt: skip
CATEGORIES = {
    "versions": "版本不合", "chat_template_data": "对话模板与数据", "training_numerics": "训练与数值（NaN、损失）",
    "processor_tokenizer": "处理器与分词器", "install": "安装", "quantised_ops": "量化的层与运算", "distributed": "多卡与分布式",
    "python_os": "Python 与系统", "hub_network": "Hub 与网络", "merge_export": "合并与导出", "cuda_driver": "CUDA 与驱动",
    "dtype": "dtype", "checkpoint_format": "检查点的格式", "gpu_arch": "GPU 架构", "remote_code": "远程代码",
    "oom_gpu": "显存不足", "peft_targets": "适配器的目标模块", "hub_auth": "Hub 的授权与 token", "oom_ram": "内存不足", "disk": "磁盘",
    "other": "其他",
}  # fmt: skip
WRITTEN = Path(__file__).parents[1] / "locale" / "zh_CN" / "checks"
# A shorter string of a check is a part of a sentence and says nothing by itself.
_SENTENCE = 45


def pages(checks: Sequence[Check], signatures: Sequence[Signature]) -> Mapping[str, str]:
    """Every Chinese page by its path under docs/zh/."""
    spoken = i18n.speaking()
    i18n.use("zh_CN")
    try:
        ours = [c for c in checks if c.distribution == OURS]
        single = {f"checks/{c.code}.md": page(c) for c in ours}
        return {"checks.md": index(ours), "troubleshooting.md": troubleshooting(signatures), **single}
    finally:
        if not spoken:
            i18n.use("en")


def index(checks: Sequence[Check]) -> str:
    """The table of all checks."""
    lines = ["# 检查一览", "", "由翻译目录生成（`python -m qlora_doctor.docs.chinese`），请勿手改。"]
    for family in dict.fromkeys(c.code[:3] for c in checks):
        lines += [
            "",
            f"## {family}：{FAMILIES.get(family, '其他')}",
            "",
            "| 代码 | 名称 | 查什么 | 可修复 |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| [{c.code}](checks/{c.code}.md) | `{c.name}` | {i18n.said(c.title).replace('|', chr(92) + '|')} | {'是' if can_fix(c) else ''} |"
            for c in checks
            if c.code.startswith(family)
        ]
    return "\n".join(lines) + "\n"


def page(check: Check) -> str:
    """The page of one check: what it looks for, and what it says."""
    lines = [f"# {check.code} {check.name}", "", i18n.said(check.title), ""]
    lines.append("*可以提出修复；`qlora-doctor fix` 会先显示再改。*" if can_fix(check) else "*只解释，不提出修复。*")
    said = list(says(check))
    if said:
        lines += ["", "## 它会这样说", "", *(f"- {text}" for text in said)]
    body = explanation(check).replace("](../", "](../../")  # its links are those of the English page
    lines += ["", "## 说明", "", body, ""] if body else [""]
    lines.append(f"[英文页](../../checks/{check.code}.md)")
    return "\n".join(lines) + "\n"


def explanation(check: Check) -> str:
    """The docstring of one of our checks in Chinese; "" where there is none (a check of somebody else's)."""
    path = WRITTEN / f"{check.code}.md"
    return path.read_text(encoding="utf-8").strip() if check.distribution == OURS and path.is_file() else ""


def lagging() -> list[str]:
    """The codes whose Chinese explanation is absent, or was written of another English text."""
    path = WRITTEN / "of.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ours = [c for c in installed_checks().checks if c.distribution == OURS]
    return [c.code for c in ours if not explanation(c) or known.get(c.code) != _mark(c)]


def accept() -> None:
    """Notes that every explanation says what its English text says today."""
    marks = {c.code: _mark(c) for c in installed_checks().checks if explanation(c)}
    (WRITTEN / "of.json").write_text(json.dumps(marks, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _mark(check: Check) -> str:
    return hashlib.sha256(check.doc.encode()).hexdigest()[:12]


def says(check: Check) -> Iterator[str]:
    """The messages of a check in the reader's language, their fields unfilled."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(check.function)))
    for text in dict.fromkeys(sentences(tree)):
        shown = i18n.tr(text)
        if len(text) >= _SENTENCE and shown != text:
            yield shown.replace("{{", "{").replace("}}", "}").replace("<", "&lt;")


def troubleshooting(signatures: Sequence[Signature]) -> str:
    """The known failures by category: what each one comes from, and its cure."""
    lines = [
        "# 排错：报错是什么意思",
        "",
        '把报错原文交给 `qlora-doctor explain "报错"`，或把整份日志交给 `qlora-doctor diagnose train.log`：它会结合环境的事实，说出是其中哪个原因。',
        "",
        "由翻译目录生成，请勿手改。",
    ]
    for category in dict.fromkeys(s.category for s in signatures):
        lines += ["", f"## {CATEGORIES.get(category, category)}"]
        for signature in signatures:
            if signature.category == category:
                lines += ["", f"### {signature.id}", ""]
                lines += [f"- **{_words(c.says)}**<br>办法：{_words(c.fix)}" for c in signature.causes]
    return "\n".join(lines) + "\n"


def _words(text: str) -> str:
    return i18n.said(text).replace("<", "&lt;").replace("*", "\\*")


def wanted() -> Mapping[str, str]:
    """The pages of what is installed."""
    return pages(installed_checks().checks, installed_signatures().all)


def main(folder: Path) -> None:
    """Writes the pages under `folder`, and removes those of checks that are gone."""
    for path in write(folder, wanted()):
        print(folder / path)


if __name__ == "__main__":
    if "--accept" in sys.argv:
        accept()
    main(Path(next((a for a in sys.argv[1:] if not a.startswith("-")), "docs/zh")).resolve())
