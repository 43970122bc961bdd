"""The ready policies decide what their cases say, every rule and condition of theirs is tested, the linter is content,
and they hold in other organizations' names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from comity.errors import ConfigError, InvalidName
from comity_node import packs
from comity_node.admission.records import ROLE
from comity_node.config import load as load_config
from comity_node.policy import cases
from comity_node.policy.lint import lint
from comity_node.policy.loader import load, loads_policy
from comity_node.policy.model import Effect
from comity_node.strictyaml import loads
from comity_node.validators.schema import Schema

Cli = Callable[..., tuple[int, str, str]]
POLICIES = Path(__file__).parents[2] / "policies"
PACKS = sorted(path.name.removesuffix(".tests.yaml") for path in POLICIES.glob("*.tests.yaml"))
NOW_MS = 1_790_000_000_000
PARTNERS = ("beta.org", "gamma.org", "delta.org")


def test_every_policy_has_cases() -> None:
    policies = {path.stem for path in POLICIES.glob("*.yaml") if not path.name.endswith(".tests.yaml")}
    assert policies == set(PACKS) == {"hospital-research", "bank-fraud", "telco", "open-science"}
    assert [pack.name for pack in packs.available()] == PACKS
    assert all(len(pack.about) > 25 for pack in packs.available())


@pytest.mark.parametrize("pack", PACKS)
def test_pack_decides_as_its_cases_say(pack: str) -> None:
    report = cases.run(POLICIES / f"{pack}.tests.yaml")
    assert [str(failure) for failure in report.failures] == []
    assert report.passed
    assert report.results
    assert report.untested == ()
    assert [line for line in report.coverage.lines() if line.startswith("no case")] == []
    assert report.coverage.percent == 100


@pytest.mark.parametrize("pack", PACKS)
def test_pack_has_no_findings(pack: str) -> None:
    policy = load(POLICIES / f"{pack}.yaml")
    document = policy.document
    named = {name for rule in document.rules for name in rule.organizations or ()}
    assert [str(finding) for finding in lint(policy, {document.organization, *named}, now_ms=NOW_MS)] == []


@pytest.mark.parametrize("pack", PACKS)
def test_rows_of_people_stay_whatever_else_a_pack_says(pack: str) -> None:
    document = load(POLICIES / f"{pack}.yaml").document
    (rule,) = [rule for rule in document.rules if rule.id == "never-raw-rows"]
    assert (rule.effect, rule.kinds, rule.conditions, rule.organizations) == (
        Effect.FORBID, frozenset({"raw"}), (), None,
    )  # fmt: skip
    assert "bulk.send" in rule.actions


@pytest.mark.parametrize(
    ("pack", "travels"), [("hospital-research", False), ("bank-fraud", True), ("telco", True), ("open-science", True)]
)
def test_a_pack_says_whether_tasks_of_a_flow_may_travel_both_ways(pack: str, travels: bool) -> None:
    """Out and in, by the role; a rule that names no role would let tasks of any skill in."""
    rules = load(POLICIES / f"{pack}.yaml").document.rules
    for action in ("record.send", "record.receive"):
        roles = [rule.roles for rule in rules if action in rule.actions and rule.allows]
        assert all(roles), action
        assert any(ROLE in (each or ()) for each in roles), "records to review state this one, out and in"
        assert any("home" in (each or ()) for each in roles) is travels, action
    names = [case["name"] for case in loads((POLICIES / f"{pack}.tests.yaml").read_text()).data()["cases"]]
    assert [name for name in names if "task" in name]


def test_the_whole_language_is_shown() -> None:
    text = "".join((POLICIES / f"{pack}.yaml").read_text() for pack in PACKS)
    for word in (
        "group:", "jurisdiction:", "time:", "drop_personal:", "noise:", "budget:", "k_anonymity:", "quota:", "rate:",
        "approval:", "notify:", "expire:", "retain:", "review:", "fields:", "reliability:", "parent:", "onward:",
    ):  # fmt: skip
        assert word in text, word


@pytest.mark.parametrize("schema", sorted(path.name for path in (POLICIES / "schemas").glob("*.json")))
def test_a_schema_is_one_that_a_node_can_hold_records_of(schema: str) -> None:
    read = Schema.load(POLICIES / "schemas" / schema)
    assert read.label in read.fields


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("pack", PACKS)
def test_pack_holds_in_other_names(cli: Cli, tmp_path: Path, pack: str, count: int) -> None:
    named = [part for partner in PARTNERS[:count] for part in ("--partner", partner)]
    code, out, err = cli("policy", "init", pack, "--organization", "acme.org", "--directory", tmp_path, *named)
    assert code == 0, err
    document = load(tmp_path / "policy.yaml").document
    assert document.organization == "acme.org"
    assert set(PARTNERS[:count]) <= document.groups["partners"]
    assert len(document.groups["partners"]) == max(2, count)
    assert ("stand for partners that were not named" in out) is (count < 2)
    assert cli("policy", "test", tmp_path / "policy.tests.yaml", "--fail-under", "100")[0] == 0
    assert ("beta.org has" in out) is (pack == "telco" and count > 0), "a guess about a partner is told"
    found = {each.code for each in lint(load(tmp_path / "policy.yaml")) if each.level == "warning"}
    assert found == ({"undecidable"} if (pack, count) == ("telco", 3) else set()), "nobody guesses the third one's law"
    original = load(POLICIES / f"{pack}.yaml").document
    assert [rule.id for rule in document.rules] == [rule.id for rule in original.rules]
    if count >= 2:
        gone = {original.organization, *original.groups["partners"]}
        text = (tmp_path / "policy.yaml").read_text() + (tmp_path / "policy.tests.yaml").read_text()
        assert not [name for name in gone if re.search(rf"(?<![\w.-]){re.escape(name)}", text)]


@pytest.mark.parametrize("pack", PACKS)
def test_a_home_can_begin_with_a_pack(cli: Cli, tmp_path: Path, pack: str) -> None:
    home = tmp_path / "acme"
    arguments = ("init", "--organization", "acme.org", "--pack", pack, "--partner", "beta.org", "--no-ca")
    code, out, err = cli("--home", home, *arguments)
    assert code == 0, err
    config = load_config(home / "node.yaml")
    document = load(config.policy).document
    assert document.organization == config.organization == "acme.org"
    assert config.datasets
    for name, dataset in config.datasets.items():
        assert name in document.datasets
        assert set(Schema.load(dataset.schema).fields) == set(document.datasets[name].fields or ())
    assert cli("policy", "test", home / "policy.tests.yaml")[0] == 0
    assert "stand for partners" in out


def test_a_list_of_packs(cli: Cli) -> None:
    code, out, _ = cli("policy", "init")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == PACKS
    assert [each["name"] for each in json.loads(cli("policy", "init", "--json")[1])] == PACKS


def test_what_is_there_stays(cli: Cli, tmp_path: Path) -> None:
    arguments = ("policy", "init", "telco", "--organization", "acme.org", "--directory", tmp_path)
    (tmp_path / "policy.yaml").write_text("mine")
    code, _, err = cli(*arguments)
    assert (code, "there is one already" in err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.yaml"]
    assert (tmp_path / "policy.yaml").read_text() == "mine"
    assert cli(*arguments, "--force")[0] == 0
    assert load(tmp_path / "policy.yaml").organization == "acme.org"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("telko", "--organization", "acme.org"), 1, 'did you mean "telco"'),
        (("telco",), 2, "--organization"),
        (("telco", "--organization", "Acme!"), 1, "Acme!"),
        (("telco", "--organization", "acme.org", "--partner", "acme.org"), 1, "the own organization not"),
        (("telco", "--organization", "acme.org", "--partner", "b.org", "--partner", "b.org"), 1, "once"),
    ],
)
def test_what_cannot_be_begun_with(cli: Cli, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    answered, _, err = cli("--home", tmp_path, "policy", "init", *arguments)
    assert answered == code
    assert says in err
    assert not list(tmp_path.iterdir())
    code, _, err = cli("--home", tmp_path / "x", "init", "--organization", "a.org", "--partner", "b.org")
    assert (code, "--pack" in err) == (2, True)


def test_names_are_replaced_whole() -> None:
    pack = packs.find("hospital-research")
    own = load(pack.path).document
    first, second = re.findall(r"partners: \{organization: \[(\S+), (\S+)\]", pack.path.read_text())[0]
    swapped = packs.render(pack, second, [first])
    document = loads_policy(swapped.files["policy.yaml"], schemas={
        path: data for path, data in swapped.files.items() if path.startswith("schemas/")
    }).document  # fmt: skip
    assert document.organization == second
    assert own.organization not in swapped.files["policy.yaml"].decode()
    names = {"mercy.example": "acme.org", "acme.org": "mercy.example"}
    told = "data@mercy.example, notmercy.example, not.mercy.example, mercy.example.org, mercy.example-2, acme.org."
    assert packs._rename(told, names) == told.replace("@mercy.example", "@acme.org").replace(
        " acme.org.", " mercy.example."
    )
    with pytest.raises(ConfigError, match="once"):
        packs.render(pack, "a.org", [first, first])
    with pytest.raises(InvalidName):
        packs.render(pack, "a.org", ["B.org"])
