"""report.html: one file that shows curves, metrics, baselines, gates, samples, provenance; and the
same figures as Markdown for a CI summary."""

from __future__ import annotations

import io
import json
from html import escape

from bigmodel_cli.artifacts.records import DataManifest, Evaluation, GateRecord, Sample
from bigmodel_cli.artifacts.tables import METRICS, figure, ledger_rows, metric_rows, splits_table
from bigmodel_cli.artifacts.workdir import Run

POINTS = 1000  # of the training curve
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --soft: #64707f;
  --line: #dfe4ea; --good: #14804a; --bad: #b42318; --card: #f6f8fa }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14181f; --soft: #98a2b0;
  --line: #2c333d; --good: #4cc38a; --bad: #ff8f85; --card: #1b212a } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.6rem; margin-bottom: .25rem } h2 { font-size: 1.15rem; margin-top: 2.25rem }
p.lead { color: var(--soft); margin-top: 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
.good { color: var(--good) } .bad { color: var(--bad) }
.plot { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem }
.plot svg { width: 100%; height: auto; display: block }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .8rem 1rem;
  border-radius: .5rem; font-size: .9rem } pre b { font-weight: 600 } code { font-size: .9em }
.scroll { overflow-x: auto } .soft { color: var(--soft) }
"""


def gate_text(gate: GateRecord) -> str:
    """One gate's verdict in words."""
    verdict = "passed" if gate.passed else "FAILED"
    text = f"{verdict}  {gate.rule}  ({figure(gate.value)} against {figure(gate.bound)}"
    difference = gate.difference
    if difference is None or difference.value is None:
        return text + ")"
    text += f", difference {change(difference.value)}"
    if difference.low is not None and difference.high is not None:
        text += f", with 95 % confidence above {change(difference.low)}"
        text += f" and below {change(difference.high)}"
        text += ", paired by unit" if gate.paired else ", not paired"
    return text + ")"


def change(value: float) -> str:
    """A difference for a person: with its sign, and more places where it is small."""
    return (
        f"{value:+,.1f}"
        if abs(value) >= 100
        else f"{value:+.4g}"
        if abs(value) < 0.01
        else f"{value:+.4f}"
    )


def title(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.run} · {evaluation.checkpoint} · {evaluation.split} split, "
        f"{evaluation.count:,} {evaluation.unit}"
    )


def markdown(evaluation: Evaluation) -> str:
    """The figures as Markdown, for GITHUB_STEP_SUMMARY."""
    lines = [f"### bigmodel evaluate: {title(evaluation)}", ""]
    lines.append("| " + " | ".join(METRICS) + " |")
    lines.append("|---|" + "---:|" * (len(METRICS) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in metric_rows(evaluation)]
    if evaluation.gates:
        lines.append("")
        for gate in evaluation.gates:
            mark = "✅" if gate.passed else "❌"
            lines.append(f"- {mark} `{gate.rule}`: {gate_text(gate).split('  ')[-1]}")
    return "\n".join(lines) + "\n\n"


def html(evaluation: Evaluation, data: DataManifest, place: Run) -> str:
    """The page, complete in itself: no script, nothing loaded from elsewhere."""
    parts = [
        f"<h1>{escape(evaluation.run)}</h1><p class=lead>{escape(evaluation.task)} · "
        f"{escape(title(evaluation).partition(' · ')[2])}</p>",
        _table(METRICS, metric_rows(evaluation)),
    ]
    if evaluation.gates:
        items = "".join(
            f"<li class={'good' if gate.passed else 'bad'}>{escape(gate_text(gate))}</li>"
            for gate in evaluation.gates
        )
        parts.append(f"<h2>Gates</h2><ul>{items}</ul>")
    curves = _curves(place)
    if curves:
        parts.append(f"<h2>Training</h2><div class=plot>{curves}</div>")
    names = list(evaluation.metrics)
    parts.append("<h2>Baselines</h2>")
    parts.append(
        _table(
            ["baseline", *names],
            [[n, *(figure(v.get(m)) for m in names)] for n, v in evaluation.baselines.items()],
        )
    )
    for table in evaluation.tables:
        body = [[c if isinstance(c, str) else f"{c:,.4g}" for c in row] for row in table.rows]
        parts.append(f"<h2>{escape(table.title)}</h2>" + _table(table.header, body))
    if evaluation.samples:
        parts.append(
            "<h2>Samples</h2><p class=soft>The request is in bold, then comes the "
            "model's answer; below it, what was really there.</p>"
        )
        parts += [
            f"<pre>{_image(sample)}<b>{escape(sample.prompt)}</b>"
            f"{escape(sample.output.removeprefix(sample.prompt))}"
            f"<br><br><span class=soft>really: {escape(sample.reference)}</span></pre>"
            for sample in evaluation.samples
        ]
    parts.append("<h2>Data</h2>" + _table(*splits_table(data)))
    parts.append("<h2>Ledger</h2>" + _table(["", "rows", "bytes"], ledger_rows(data.ledger)))
    proof = {
        "evaluation": evaluation.fingerprint,
        "weights": evaluation.weights,
        "data": evaluation.data_fingerprint,
        **evaluation.protocol,
        **evaluation.environment,
    }
    parts.append(
        "<h2>Provenance</h2>"
        + _table(["", ""], [[k, str(v)] for k, v in proof.items() if v is not None])
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(evaluation.run)}: evaluation</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _image(sample: Sample) -> str:
    if not sample.image:
        return ""
    return f"<img alt='' height=112 src='{escape(sample.image, quote=True)}'><br>"


def _table(header: list[str], body: list[list[str]]) -> str:
    colour = {"better": "good", "worse": "bad"}
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join(
        "<tr>"
        + "".join(f"<td class='{colour.get(cell, '')}'>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in body
    )
    return f"<div class=scroll><table><tr>{head}</tr>{lines}</table></div>"


def _curves(place: Run) -> str:
    """Loss of training and validation over tokens, as inline SVG; "" without a log."""
    if not place.log.is_file():
        return ""
    trained: list[tuple[float, float]] = []
    validated: list[tuple[float, float]] = []
    for line in place.log.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if "loss" in record:
                trained.append((float(record["tokens"]), float(record["loss"])))
            else:
                loss = record["validation"]["loss"]
                validated.append((float(record["tokens"]), float(loss)))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # the log is for people: a damaged line is left out
    if not trained:
        return ""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": "bigmodel", "font.size": 9, "svg.fonttype": "none"}):
        drawing, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
        shown = trained[:: max(1, len(trained) // POINTS)]
        axes.plot(*zip(*shown, strict=True), lw=1, color="#9db2ce", label="training")
        if validated:
            axes.plot(
                *zip(*validated, strict=True),
                lw=2,
                marker="o",
                ms=4,
                color="#1f5fbf",
                label="validation",
            )
        axes.set_xlabel("tokens")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel("loss (nats)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        text = io.StringIO()
        drawing.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(drawing)
    return text.getvalue()[text.getvalue().index("<svg") :]
