"""Chat templates that recipes call by name, rendered as tokenizers render them."""

import pytest

from mergekern.merging.recipes.chat_templates import CHAT_TEMPLATES

jinja2 = pytest.importorskip("jinja2.sandbox")
MESSAGES = [("system", "Be short."), ("user", "Hi "), ("assistant", "Yes?"), ("user", "Why")]
EXPECTED = {
    "chatml": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes?"
    "<|im_end|>\n<|im_start|>user\nWhy<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be short.\n\nHi  [/INST] Yes?</s> [INST] Why [/INST]",
    "alpaca": "Be short.\n\n### Instruction:\nHi\n\n### Response:\nYes?\n\n### Instruction:\nWhy\n\n### Response:\n",
    "exaone": "[|system|]Be short.[|endofturn|]\n[|user|]Hi \n[|assistant|]Yes?[|endofturn|]\n[|user|]Why\n"
    "[|assistant|]",
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_conversation(name):
    environment = jinja2.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": role, "content": content} for role, content in MESSAGES]
    template = environment.from_string(CHAT_TEMPLATES[name])
    found = template.render(messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert found == EXPECTED[name]
