"""The report as one page of HTML that loads nothing, runs nothing and shows what came from peers as text.

Cells and sentences are escaped unless they are `Markup`, which only this module makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from comity_node.demo.report import plots
from comity_node.demo.report.facts import BAD, ENDS
from comity_node.demo.report.headlines import comparisons, headlines, verdict
from comity_node.demo.report.text import decimal, kind_name, percent, plural, signed, size

Report = Mapping[str, Any]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """\
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; color: #1c2733;
       background: #fff; max-width: 980px; margin: 0 auto; padding: 24px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px; border-top: 1px solid #dfe4e9;
     padding-top: 20px; } h3 { font-size: 16px; margin: 24px 0 6px; }
p, li { max-width: 76ch; } .note { color: #5b6875; font-size: 14px; }
.facts { background: #f3f7fa; border-left: 4px solid #0072b2; padding: 12px 20px 12px 36px; }
.facts li { margin: 6px 0; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; display: block; margin: 12px 0; }
table { border-collapse: collapse; margin: 10px 0; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid #dfe4e9; text-align: left; vertical-align: top; }
th { color: #5b6875; font-weight: 600; } td.n, th.n { text-align: right; }
tr.sum td { font-weight: 600; border-top: 2px solid #9aa3ab; }
.good { color: #00714f; } .bad { color: #b34700; font-weight: 600; }
pre { background: #f3f5f7; padding: 10px 12px; overflow-x: auto; font-size: 13px; white-space: pre-wrap;
      overflow-wrap: anywhere; }
"""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def page(report: Report) -> str:
    """Return the whole page."""
    sections = (
        _facts(report),
        _negotiation(report),
        _organizations(report),
        _corruption(report),
        _reliability(report),
        _live(report),
        _comparison(report),
        _timings(report),
        _verify(report),
        _machine(report),
    )
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comity: what the demo did</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _facts(report: Report) -> str:
    data = f" Data: {report['data']}." if report["data"] else ""
    items = "".join(f"<li>{escape(line)}</li>" for line in headlines(report))
    return (
        "<h1>Comity: what the demo did</h1>"
        + _p(
            "Organizations that do not trust each other made synthetic rows, reviewed each other's, certified what a "
            f"quorum found good, and trained a model together. One of them turned bad.{data}",
            "note",
        )
        + f'<ul class="facts">{items}</ul>'
        + "<h3>What review does, and what it does not</h3>"
        + _p(
            "Review keeps out single rows that are implausible, wrongly labelled where the reviewers' models are sure, "
            "repeated, or too close to a real patient. It loses some good rows on the way. It does not prove that a "
            "certified row is true, it is weak against a little label noise, and it says nothing of a model update "
            "that was trained on rows nobody has seen: updates are scored on their own before they are averaged."
        )
    )


def _negotiation(report: Report) -> str:
    rows = [[one["organization"], one["step"], one["detail"]] for one in report["negotiation"]]
    return "<h2>The agreement</h2>" + _table(["organization", "step", "what it said"], rows)


def _organizations(report: Report) -> str:
    headers = ["organization", "role", "private rows", "offered", *ENDS, "after repair", "adds up"]
    rows = [
        [
            name,
            _role(one["role"]),
            one["private_rows"],
            *(one[field] for field in ("offered", *ENDS)),
            one["repaired"],
            _yes(one["adds_up"]),
        ]
        for name, one in report["organizations"].items()
    ]
    totals = report["records"]["totals"]
    private = sum(one["private_rows"] for one in report["organizations"].values())
    repaired = sum(one["repaired"] for one in report["organizations"].values())
    sums = [totals[field] for field in ("offered", *ENDS)]
    rows.append(["all", "", private, *sums, repaired, _yes(report["records"]["adds_up"])])
    reasons = [
        [
            name,
            _counts(one["refused_by"]),
            _counts(one["rejected_by"]),
            _counts(one["refused_messages"]),
        ]
        for name, one in report["organizations"].items()
    ]
    return (
        "<h2>Rows by organization</h2>"
        + _wide(plots.outcomes(report))
        + _table(headers, rows, sum_row=True)
        + _p(f"Every row that was offered ended in one of four ways: {report['records']['rule']}.", "note")
        + "<h3>Why</h3>"
        + _table(["organization", "rows refused, by rule", "rows rejected, by axis", "messages it refused"], reasons)
    )


def _corruption(report: Report) -> str:
    found = report["records"]["corruption"]
    why = {one["kind"]: one["why"] for one in found["certified_kinds"]}
    rows = [
        [kind_name(one["kind"]), one["made"], one["certified"], percent(one["certified"], one["made"]),
         why.get(one["kind"], "")]
        for one in found["kinds"]
    ]  # fmt: skip
    replays = [[what, count] for what, count in found["replays"].items()]
    again = (
        "<h3>Messages that it sent again, or to somebody else</h3>" + _table(["what came back", "messages"], replays)
        if replays
        else ""
    )
    return (
        "<h2>What became of the bad organization's rows</h2>"
        + _p(
            "Counted from the bad organization's own log of what it did to each row, which no other organization sees, "
            "and from the certified records that an honest one holds. Counted are different rows, those that it made "
            "again after a refusal among them, so there are more than it offered."
        )
        + _table(["what was done", "made", "certified", "share", "likely reason"], rows)
        + again
    )


def _reliability(report: Report) -> str:
    rows = [
        [
            one["organization"],
            _role(one["role"]),
            one["judges"],
            *(decimal(one[k], 2) for k in ("median", "min", "max")),
        ]
        for one in report["reliability"]["summary"]
    ]
    return (
        "<h2>Reliability</h2>"
        + _p(
            "What each organization has learned from how the others' reviews compared with its quorums: the mean of a "
            "Beta distribution, which starts in the middle for who is not known yet."
        )
        + _wide(plots.reliability(report))
        + _table(["organization", "role", "honest judges", "median", "lowest", "highest"], rows)
    )


def _live(report: Report) -> str:
    live = report["federated"]["live"]
    headers = ["round", "organization", "", "private + certified rows", "trust", "AUC", "cosine", "distance", "reasons"]
    rows: list[list[object]] = []
    for one in live["rounds"]:
        for kind, mark in (("admitted", "good"), ("refused", "bad")):
            rows += [
                [
                    one["round"],
                    entry["organization"] or "unknown",
                    Markup(f'<span class="{mark}">{kind}</span>'),
                    f"{entry['private_examples']} + {entry['certified_examples']}",
                    *(
                        decimal(entry[key], 2 if key == "trust" else 3)
                        for key in ("trust", "auc", "cosine", "distance")
                    ),
                    "; ".join(entry["reasons"]),
                ]
                for entry in one[kind]
            ]
    rounds = [
        [one["round"], len(one["admitted"]), len(one["refused"]), decimal(one["validation"]["auc"]),
         decimal(one["validation"]["accuracy"])]
        for one in live["rounds"]
    ]  # fmt: skip
    held_out = live["held_out"]
    final = (
        f"On the held-out test set ({plural(held_out['rows'], 'row')}) the final model has AUC "
        f"{decimal(held_out['auc'])} and accuracy {decimal(held_out['accuracy'])}."
        if held_out["auc"] is not None
        else "The final model was not scored on the held-out test set."
    )
    return (
        "<h2>Federated training, live</h2>"
        + _p(
            "Flower's own processes, their traffic through the organizations' links. Each update came with a signed "
            "manifest and was scored before it was averaged: AUC on a few rows that the server's organization put "
            "aside, cosine and distance to the others' median."
        )
        + _table(["round", "admitted", "refused", "AUC on the server's rows", "accuracy"], rounds)
        + _p(final)
        + _table(headers, rows)
    )


def _comparison(report: Report) -> str:
    ablation = report["federated"]["ablation"]
    count = len(ablation["seeds"])
    rows = [
        [
            arm["label"],
            *(
                text
                for metric in ("auc", "accuracy")
                for text in (
                    f"{decimal(arm[metric]['mean'], 4)} ± {decimal(arm[metric]['sd'], 4)}",
                    f"{decimal(arm[metric]['min'])} to {decimal(arm[metric]['max'])}",
                )
            ),
        ]
        for arm in ablation["arms"]
    ]
    answers = [
        [change, case, signed(one["mean"]), decimal(one["sd"], 4), f"{one['higher_in']} of {one['n']}", verdict(one)]
        for change, case, one in comparisons(report)
    ]
    scoring = ablation["scoring"]
    return (
        f"<h2>Ways to train, compared over {plural(count, 'seed')}</h2>"
        + _p(
            "In one process, with the same generators, validators, adversary and model as above but without a network; "
            "the bad organization is bad from its first batch. Each seed divides the same rows anew, so the spread "
            "says what the division does, not what other patients would. Each dot is a seed, the diamond their mean, "
            "the bar one standard deviation to each side."
        )
        + _wide(plots.comparison(report, "auc", "AUC"))
        + _table(["arm", "AUC, mean ± sd", "lowest to highest", "accuracy, mean ± sd", "lowest to highest"], rows)
        + "<h3>Differences in AUC, paired by seed</h3>"
        + _table(["change", "", "difference", "sd", "higher in", ""], answers)
        + _p(
            "Within the noise: the mean difference is less than twice its standard error (sd / √n). With few seeds "
            "that is a rule of thumb: with five, one in nine differences that are none passes it by chance.",
            "note",
        )
        + _p(
            f"Scoring refused {plural(scoring['refused_bad'], 'update')} of the bad organization and "
            f"{scoring['refused_honest']} of honest ones in {plural(scoring['rounds'], 'round')} over all seeds."
        )
        + _every_difference(ablation["arms"])
    )


def _every_difference(arms: Sequence[Mapping[str, Any]]) -> str:
    lines = [one[metric]["sentence"] for arm in arms for one in arm["compared"] for metric in ("auc", "accuracy")]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details><summary>Every difference, also in accuracy</summary><ul>{items}</ul></details>" if lines else ""


def _timings(report: Report) -> str:
    times = report["timings"]
    parts = [
        f"{decimal(times['total_s'], 1)} s in all, {plural(times['messages'], 'message')}, {size(times['sent_bytes'])} "
        "sent between the organizations",
    ]
    for key, unit in (("records_decided_per_s", "records decided a second"), ("reviews_per_s", "reviews a second")):
        if times.get(key) is not None:
            parts.append(f"{decimal(times[key], 1)} {unit}")
    rows = [
        [name, one["messages_sent"], one["messages_received"], size(one["bytes_sent"]), size(one["bytes_received"]),
         one["reconnects"]]
        for name, one in report["organizations"].items()
    ]  # fmt: skip
    headers = ["organization", "messages sent", "received", "bytes sent", "received", "reconnects"]
    return (
        "<h2>Time and traffic</h2>" + _p(f"{'; '.join(parts)}.") + _wide(plots.timings(report)) + _table(headers, rows)
    )


def _verify(report: Report) -> str:
    parts = []
    for one in report["verify"]:
        mark = Markup('<span class="good">passed</span>' if one["passed"] else '<span class="bad">FAILED</span>')
        parts.append(
            f"<h3>{escape(one['what'])}: {mark}</h3><pre>$ {escape(one['command'])}\n{escape(one['output'])}</pre>"
        )
    return "<h2>Verify it yourself</h2>" + "".join(parts)


def _machine(report: Report) -> str:
    found = report["machine"]
    facts = [[key, value] for key, value in found.items() if key != "packages"]
    versions = [[name, version] for name, version in found.get("packages", {}).items()]
    return "<h2>Where it ran</h2>" + _table(["", ""], [*facts, *versions])


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, sum_row: bool = False) -> str:
    """Return a table; columns that hold nothing but numbers stand on the right."""
    listed = [list(row) for row in rows]
    if not listed:
        return _p("Nothing.", "note")
    numeric = [_is_numeric(column) for column in zip(*listed, strict=True)]
    head = "".join(
        f'<th class="n">{escape(name)}</th>' if right else f"<th>{escape(name)}</th>"
        for name, right in zip(headers, numeric, strict=True)
    )
    lines = []
    for number, row in enumerate(listed):
        mark = ' class="sum"' if sum_row and number == len(listed) - 1 else ""
        cells = (
            f'<td class="n">{_cell(c)}</td>' if right else f"<td>{_cell(c)}</td>"
            for c, right in zip(row, numeric, strict=True)
        )
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _is_numeric(column: Sequence[object]) -> bool:
    shown = [str(cell).strip("+-–% ").replace(".", "") for cell in column]
    return any(shown) and all(text.isdigit() or not text for text in shown)


def _cell(cell: object) -> str:
    return cell if isinstance(cell, Markup) else escape(f"{cell:,}" if isinstance(cell, int) else str(cell))


def _p(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _wide(drawing: str) -> str:
    return f'<div class="wide">{drawing}</div>'


def _role(role: str) -> Markup:
    return Markup(f'<span class="bad">{escape(role)}</span>' if role == BAD else escape(role))


def _yes(value: bool) -> Markup:
    return Markup('<span class="good">yes</span>' if value else '<span class="bad">NO</span>')


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "–"
