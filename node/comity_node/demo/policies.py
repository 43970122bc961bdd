"""The policies of the demo's organizations: three hospitals alike, one stricter, and one that minds nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

DATASET = "tumour-features"
PURPOSE = "breast-cancer-screening"
#: The hospital whose policy asks for more distance than the others propose: it makes a counter-offer.
STRICT = "charite.example"
#: Least distance of a synthetic row to the closest private one (standardized, over the root of the dimension).
DISTANCE = 0.2
STRICT_DISTANCE = 0.3

_HOSPITAL = """\
# The policy of {organization}. What no rule allows is denied; a forbid beats every allow.
version: 1
organization: {organization}
purposes:
  medical-research: {{}}
  breast-cancer-screening: {{parent: medical-research}}
datasets:
  {dataset}: {{classification: confidential, subject: patient}}

rules:
  # Real rows of patients stay here, whoever asks and for whatever.
  - id: never-raw-rows
    effect: forbid
    action: "*"
    data: {{kind: raw}}

  - id: show-agents-to-members
    effect: allow
    action: agent.discover
    with: {{organization: {others}}}

  # What this node may propose and sign by itself. The obligations are the floor: terms below it get a counter-offer.
  - id: propose-screening
    effect: allow
    action: agreement.offer
    to: {{organization: {others}}}
    data: {{dataset: {dataset}}}
    purpose: [breast-cancer-screening]
    obligations:
      min_distance_to_private: {proposed}
      onward: never
  - id: accept-screening
    effect: allow
    action: agreement.accept
    from: {{organization: {others}}}
    data: {{dataset: {dataset}}}
    purpose: [breast-cancer-screening]
    when: {{records: {{max: 1000}}, quorum: {{min: 3}}}}
    obligations:
      min_distance_to_private: {floor}
      onward: never
      review: {{quorum: 3, distinct_organizations: true}}

  # Synthetic rows may go to reviewers, not faster than this, and not where one sits on top of a real one.
  - id: offer-synthetic-tumours
    effect: allow
    action: record.send
    to: {{organization: {others}, role: [validator]}}
    data: {{dataset: {dataset}, kind: synthetic}}
    purpose: [breast-cancer-screening]
    obligations:
      min_distance_to_private: {floor}
      rate: {{records: 5000, per: 1m}}
      onward: never
  - id: review-for-members
    effect: allow
    action: [record.receive, review.send, review.receive]
    with: {{organization: {others}}}
    data: {{dataset: {dataset}}}
    purpose: [breast-cancer-screening]

  # Only what a quorum has certified goes to all participants, and comes in from them.
  - id: share-certified
    effect: allow
    action: [record.release, record.accept]
    with: {{organization: {others}}}
    data: {{dataset: {dataset}, kind: certified}}
    purpose: [breast-cancer-screening]
    obligations: {{onward: never}}

  # Federated training: updates leave with a signed manifest, through the tunnel to the training's server (which may be
  # this organization itself).
  - id: train-together
    effect: allow
    action: [update.send, update.receive]
    with: {{organization: {members}, role: [trainer]}}
    data: {{dataset: {dataset}, kind: update}}
    purpose: [breast-cancer-screening]
    when: {{examples: {{min: 20}}}}
  - id: tunnel-to-the-training
    effect: allow
    action: [tunnel.open, tunnel.serve]
    with: {{organization: {others}}}
    when: {{tunnel: [flower]}}
"""

_ANYTHING = """\
# The policy of {organization}: its owner lets everything out and everything in. The others' policies still hold.
version: 1
organization: {organization}
datasets:
  {dataset}: {{classification: public, subject: patient}}
rules:
  - id: anything-goes
    effect: allow
    action: "*"
    with: {{organization: "*"}}
"""


def policy_for(organization: str, members: Sequence[str], *, bad: bool) -> str:
    """Return the policy (YAML) of one organization of the demo."""
    if bad:
        return _ANYTHING.format(organization=organization, dataset=DATASET)
    return _HOSPITAL.format(
        organization=organization,
        dataset=DATASET,
        members=json.dumps(list(members)),
        others=json.dumps([member for member in members if member != organization]),
        proposed=DISTANCE,
        floor=STRICT_DISTANCE if organization == STRICT else DISTANCE,
    )
