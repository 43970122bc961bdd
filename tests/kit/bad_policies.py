"""Policies that are refused: `@` marks where the error points to."""

from __future__ import annotations

START = "version: 1\norganization: own.example\nrules: []\n"
HEAD = """\
version: 1
organization: own.example
organizations: {a.example: {jurisdiction: EU}}
groups: {g: {organization: a.example}}
rules:
"""
RULE = "  - {{id: a, effect: allow, action: record.send, {rest}}}"
TO = 'to: {organization: "*"}'
NARROW = "{epsilon: 1, lower: 1, upper: 4}"  # no multiple of 5

#: What follows a rule's action, and what is said about it.
RULES = [
    ("to: {group: @h}", 'unknown group "h"; known: g'),
    ("to: @{role: [validator]}", '"organization" is missing, or "group"'),
    ("to: {organization: '*', group: @g}", "everybody already; leave the group"),
    ("to: {organization: [@A.example]}", "lower-case letters"),
    ("to: {organization: [@mеrcy.example]}", r"U\+0435, CYRILLIC SMALL LETTER IE, which only looks"),
    ("to: {organization: [@ａ.example]}", r"U\+FF41, FULLWIDTH LATIN SMALL LETTER A"),
    ("to: {organization: [@a‐b.example]}", r"U\+2010, HYPHEN"),
    ("to: {organization: [@a.example\u200b]}", r"U\+200B, ZERO WIDTH SPACE"),
    ("to: {organization: [@a_b.example]}", "lower-case letters"),
    (f"{TO}, when: {{jurisdiction: @UE}}", 'unknown jurisdiction "UE"; known: EU'),
    (f"{TO}, when: {{@jurisdictions: EU}}", 'did you mean "jurisdiction"'),
    (f"{TO}, when: {{@size: {{max: 1}}}}", "unknown label"),
    (f"{TO}, when: {{time: @{{}}}}", "needs from and to"),
    (f'{TO}, when: {{time: @{{from: "08:00"}}}}', "from and to, or neither"),
    (f'{TO}, when: {{time: {{from: @"8:00", to: "18:00"}}}}', 'a time of day from "00:00" to "24:00"'),
    (f'{TO}, when: {{time: {{from: "08:00", to: @"24:01"}}}}', "a time of day"),
    (f'{TO}, when: {{time: {{from: @8, to: "18:00"}}}}', "in quotes"),
    (f'{TO}, when: {{time: @{{from: "08:00", to: "08:00"}}}}', "are the same"),
    (f'{TO}, when: {{time: {{from: @"24:00", to: "08:00"}}}}', "cannot begin at 24:00"),
    (f"{TO}, when: {{time: {{days: [@monday]}}}}", 'did you mean "mon"'),
    (f"{TO}, when: {{time: {{days: [mon, @mon]}}}}", "listed twice"),
    (f"{TO}, when: {{time: {{days: [mon], zone: @Europe/Berlin}}}}", "names of zones are not known"),
    (f'{TO}, when: {{time: {{days: [mon], zone: @"+15:00"}}}}', "an offset from UTC"),
    (f"{TO}, data: {{fields: [@a..b]}}", "no path"),
    (f"{TO}, obligations: {{drop_personal: @yes}}", "expected true or false"),
    (f"{TO}, obligations: {{mask: {{phone: @-1}}}}", "from 0 to 64"),
    (f"{TO}, obligations: {{mask: {{phone: @65}}}}", "from 0 to 64"),
    (f"{TO}, obligations: {{mask: {{@a.: 1}}}}", "no path"),
    (f"{TO}, obligations: @{{mask: {{a: 1}}, hash: [a]}}", '"a" is to be masked and hashed'),
    (f"{TO}, obligations: @{{generalize: {{a: 1}}, hash: [a]}}", '"a" cannot have all the forms'),
    (
        f"{TO}, obligations: @{{noise: {{a: {{epsilon: 1, lower: 1, upper: 4}}}}, generalize: {{a: 5}}}}",
        "all the forms",
    ),
    (f"{TO}, obligations: {{noise: {{a: {{epsilon: @-1, lower: 0, upper: 1}}}}}}", "from 0 to 1e"),
    (f"{TO}, obligations: {{noise: {{a: {{epsilon: @0, lower: 0, upper: 1}}}}}}", "epsilon must be over 0"),
    (f"{TO}, obligations: {{noise: {{a: @{{epsilon: 1, lower: 1, upper: 1}}}}}}", "lower is not below upper"),
    (f"{TO}, obligations: {{noise: {{a: {{epsilon: 1, lower: 0, upper: @2e12}}}}}}", "from -1e"),
    (f"{TO}, obligations: {{noise: {{a: @{{epsilon: 1, lower: 0}}}}}}", '"upper" is missing'),
    (f"{TO}, obligations: {{budget: {{epsilon: @-3}}}}", "from 0 to 1e"),
    (f"{TO}, obligations: {{budget: {{epsilon: @0}}}}", "over 0"),
    (f"{TO}, obligations: {{budget: {{epsilon: 1, per: [@agent]}}}}", "known: purpose, recipient"),
    (f"{TO}, obligations: {{k_anonymity: {{k: @1, fields: [a]}}}}", "from 2 to 1000000"),
    (f"{TO}, obligations: {{k_anonymity: {{k: 5, fields: @[]}}}}", "empty"),
    (f"{TO}, obligations: {{k_anonymity: @{{k: 5}}}}", '"fields" is missing'),
    (f"{TO}, obligations: {{rate: {{records: @-1, per: 1m}}}}", "from 0 to 9007199254740992"),
    (f"{TO}, obligations: {{rate: {{records: 1, per: @-1m}}}}", "duration"),
    (f"{TO}, obligations: {{quota: {{records: @-1}}}}", "from 0 to"),
    (f"{TO}, obligations: {{quota: {{records: @1.5}}}}", "whole number"),
    (f"{TO}, obligations: {{quota: {{records: 1, @per: 1m}}}}", 'unknown key "per"'),
    (f"{TO}, obligations: {{approval: {{within: @0s}}}}", "from 1s to 366d"),
    (f"{TO}, obligations: {{approval: @true}}", "expected a mapping"),
    (f"{TO}, obligations: {{notify: @[]}}", "empty"),
    (f"{TO}, obligations: {{expire: @tomorrow}}", "no day such as"),
    (f"{TO}, obligations: {{expire: @2027-02-30}}", "no day such as"),
    (f"{TO}, obligations: {{expire: @2027-01-01T00:00:00}}", "no day such as"),
    (f"{TO}, obligations: {{expire: @1969-12-31}}", "before 1970"),
    (f"{TO}, obligations: {{onward: @no}}", 'unknown value "no"'),
    (f"{TO}, obligations: {{review: {{quorum: 1, distinct_organizations: @on}}}}", "expected true or false"),
]

#: What follows `START`.
TOPS = [
    ("groups: {@a: {group: b}, b: {group: a}}", 'the group "a" holds itself: a > b > a'),
    ("groups: {@a: {group: [a]}}", "holds itself: a > a"),
    ("groups: {x: {group: b}, b: {group: c}, @c: {group: d}, d: {group: c}}", "holds itself: c > d > c"),
    ("groups: {a: {group: [@b]}}", 'unknown group "b"; known: a'),
    ("groups: {a: @{}}", "needs organization"),
    ("groups: {a: @[a.example]}", "expected a mapping"),
    ("groups: {@A: {organization: a.example}}", "is no name"),
    ("groups: {a: {organization: [@a.exаmple]}}", r"U\+0430, CYRILLIC SMALL LETTER A"),
    ("groups: {a: {organization: [a.example, @a.example]}}", "listed twice"),
    ("organizations: {@a.exаmple: {jurisdiction: EU}}", "CYRILLIC"),
    ("organizations: {a.example: @{}}", '"jurisdiction" is missing'),
    ("organizations: {a.example: {jurisdiction:@ }}", "expected a string"),
    ("organizations: {a.example: {jurisdiction: [@E U]}}", "no jurisdiction"),
    ("organizations: {a.example: {jurisdiction: [@ΕU]}}", "no jurisdiction"),
    ("organizations: {a.example: {@country: EU}}", "unknown key"),
    ("@rules: []", "already there in line 3"),
    ("groups: {a: {organization: x.example}, @a: {organization: y.example}}", "already there"),
    ("datasets: @&x {}", "anchors and aliases"),
    ("datasets: @!!map {}", "tags are not allowed"),
    ("@---\nversion: 1", "a second document"),
    ("purposes: {a: {parent: @no}}", 'unknown purpose "no"'),
]

ONE_RULE = "  - {{id: a, effect: allow, action: record.send, to: {{organization: [b.example]}}{more}}}"
DATA = "datasets: {d: {classification: public}}"

#: What follows the first keys of `ONE_RULE`.
MORE = [
    (", @obligation: {}", 'unknown key "obligation" in rules.0.; did you mean "obligations"'),
    (", purpose: [a, @a]", "listed twice"),
    (", purpose: [@1]", "quotes"),
    (", data: {dataset: @e}", 'unknown dataset "e"'),
    (", data: {kind: @synthetics}", 'did you mean "synthetic"'),
    (", data: {classification: @secret}", "known: confidential, internal, public, restricted"),
    (", data: {@kinds: raw}", 'did you mean "kind"'),
    (", when: {@record: {max: 1}}", 'unknown label "record"; did you mean "records"'),
    (", when: {records: @{max: 1, min: 2}}", "min is above max"),
    (", when: {records: @{}}", "needs min, max or both"),
    (", when: {records: @5}", "expected a mapping"),
    (", when: {tunnel: @{max: 1}}", "expected a string"),
    (", when: {distinct_organizations: @yes}", "true or false"),
    (", obligations: {redact: [@a..b]}", "no path"),
    (", obligations: {redact: @[]}", "empty"),
    (", obligations: {generalize: {age: @0}}", "must be from 1e-06"),
    (", obligations: {generalize: {age: @0.1234567}}", "six decimals"),
    (", obligations: {generalize: {@a.: 1}}", "no path"),
    (", obligations: {min_distance_to_private: @-1}", "must be from 0"),
    (", obligations: {rate: @{records: 1}}", 'the key "per" is missing'),
    (", obligations: {rate: {records: 1, per: @1}}", "duration"),
    (", obligations: {retain: @10ms}", "must be from 1s"),
    (", obligations: {review: {quorum: @0}}", "from 1 to 1000"),
    (", obligations: {review: {quorum: 1, min_score: @70}}", "from 0 to 1"),
    (", obligations: {onward: @no}", 'unknown value "no"'),
    (", from: @{organization: '*'}", "names the other side once"),
    (", with: @{organization: '*'}", "names the other side once"),
]

#: Whole rules.
WHOLE_RULES = [
    ("{id: a, effect: allow, action: record.send}", "an allow rule must say who"),
    ("{id: a, effect: allow, action: record.sned, to: {organization: '*'}}", 'did you mean "record.send"'),
    ("{id: a, effect: allow, action: record.send, from: {organization: '*'}}", "does not go from .* write to"),
    (
        "{id: a, effect: allow, action: [record.send, record.receive], to: {organization: '*'}}",
        "record.receive does",
    ),
    ("{id: a, effect: allow, action: '*', to: {organization: '*'}}", "does not go to"),
    ("{id: a, effect: allow, action: record.send, to: {role: [x]}}", '"organization" is missing'),
    ("{id: a, effect: allow, action: record.send, to: {organization: [Mercy]}}", "no organization name"),
    ("{id: a, effect: allow, action: record.send, to: {organization: ['*', b.example]}}", "no organization name"),
    ("{id: a, effect: deny, action: record.send}", 'unknown effect "deny"'),
    ("{id: A, effect: forbid, action: record.send}", "is no id"),
    ("{id: comity.x, effect: forbid, action: record.send}", "built-in"),
    ("{id: 1, effect: forbid, action: record.send}", "quotes"),
    ("{effect: forbid, action: record.send}", '"id" is missing'),
    ("{id: a, effect: forbid, action: []}", "empty"),
    ("{id: a, effect: forbid, action: '*', obligations: {onward: never}}", "has no obligations"),
    ("{id: a, effect: forbid, action: '*', data: {personal: [x]}}", "a forbid rule has none"),
    (
        "{id: a, effect: forbid, action: '*'}\n  - {id: a, effect: forbid, action: '*'}",
        "already taken by p.yaml:5:5",
    ),
    ("no", "expected a mapping"),
]

EMPTY = "version: 1\norganization: a.example\nrules: []\n"
SCHEMA_IS = EMPTY + "datasets: {d: {classification: public, schema: "

#: Whole files.
FILES = [
    ("organization: a.example\nrules: []", '"version" is missing'),
    ("version: 2\norganization: a.example\nrules: []", "from 1 to 1"),
    ("version: 1\nrules: []", '"organization" is missing'),
    ("version: 1\norganization: a.example", '"rules" is missing'),
    (EMPTY + "rule: []", 'did you mean "rules"'),
    (EMPTY + "purposes: {a: {parent: b}}", "unknown purpose"),
    (EMPTY + "purposes: {a: {parent: b}, b: {parent: a}}", "own ancestor"),
    (EMPTY + "purposes: {a: {parent: a}}", "own ancestor"),
    (EMPTY + "datasets: {d: {}}", '"classification" is missing'),
    (EMPTY + "datasets: {D: {classification: public}}", "is no name"),
    (SCHEMA_IS + "none.yaml}}", "no such file"),
    (SCHEMA_IS + "{a: {}}}}", '"type" is missing'),
    (SCHEMA_IS + "{a: {type: text}}}}", "unknown type"),
    (SCHEMA_IS + "{a: {type: string, max: 3}}}}", "no range"),
    (SCHEMA_IS + "{a: {type: number, values: [x]}}}}", "values are for"),
    (SCHEMA_IS + "{a: {type: number, min: 3, max: 2}}}}", "min is above"),
    (SCHEMA_IS + "{a: {type: string, personal: no}}}}", "true or false"),
]
