"""An agent with a model behind it: it answers questions and criticizes answers.

MODEL_URL=http://127.0.0.1:8000/v1 MODEL=qwen3-8b python -m comity.worker examples/model-agent/model_agent.py:agent
"""

from __future__ import annotations

import os
from typing import Any

from comity.agent import Agent, Work
from comity.models import BackendLimits, OpenAiBackend, Window

agent = Agent("scholar")

backend = OpenAiBackend(
    os.environ.get("MODEL_URL", "http://127.0.0.1:8000/v1"),
    os.environ.get("MODEL", "default"),
    key_file=os.environ.get("MODEL_KEY_FILE"),
    window=Window(first=4, cap=32),
    limits=BackendLimits(total_s=120.0),
)

ANSWER = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "maxLength": 8000},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["answer", "confidence"],
    "additionalProperties": False,
}
VERDICT = {
    "type": "object",
    "properties": {"verdict": {"enum": ["good", "bad"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


@agent.skill("answer")
async def answer(work: Work) -> dict[str, Any]:
    """Answer the `question` of the state, and say how sure the model is."""
    said = await backend.complete(
        [
            {"role": "system", "content": "Answer briefly, as JSON, with your confidence from 0 to 1."},
            {"role": "user", "content": work.input["state"]["question"]},
        ],
        schema=ANSWER,
        max_tokens=1024,
        timeout_s=work.remaining_s,
    )
    return {"state": said.value, "usage": said.usage.report()}


@agent.skill("critique")
def critique(work: Work) -> dict[str, Any]:
    """Say whether `answer` answers `question`; a skill that runs on a thread does it so."""
    state = work.input["state"]
    asked = f"Question: {state['question']}\nAnswer: {state['answer']}\nIs the answer good or bad?"
    said = backend.complete_sync(asked, schema=VERDICT, max_tokens=64, timeout_s=work.remaining_s)
    return {"state": said.value, "usage": said.usage.report()}
