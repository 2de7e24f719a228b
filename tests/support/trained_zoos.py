"""Zoos of tiny models of transformers that are trained to their tasks, as folders with tokenizers, in seconds.

Sequence classifiers tell by which of some words a text holds most; their words differ, their heads too. Language models
continue a pattern of their own. Classifiers of images tell which patch is bright, in colours of their own.
"""

import json

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
WIDE = {"initializer_range": 0.2}  # the library's 0.02 is for wide layers
WORDS = [f"w{index}" for index in range(24)]
LENGTH = 10


def tokenizer():
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]")


def train(model, batches, rate=3e-3):
    """Train by AdamW on batches of keywords of the model's forward."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def save(model, folder, labels=None):
    if labels is not None:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


# --- classifiers of texts


def texts_of(classes, first, count, draw):
    """Return texts and labels: the class is that of the one group of four words, from `first` on, that a text has."""
    labels = torch.arange(count) % classes
    picked = first + 4 * labels[:, None] + torch.randint(4, (count, 3), generator=draw)
    others = torch.randint(len(WORDS) - 3, len(WORDS), (count, LENGTH - 3), generator=draw)
    rows = torch.cat([picked, others], dim=1)
    rows = torch.stack([row[torch.randperm(LENGTH, generator=draw)] for row in rows])
    return [" ".join(WORDS[index] for index in row) for row in rows.tolist()], labels


CLASSIFIERS = {"first": (2, 0), "second": (3, 8)}  # name -> classes, first word
# Six tasks of one body, four numbers of labels.
SIX = {"reviews": (2, 0), "topics": (4, 0), "tones": (3, 8), "intents": (5, 0), "stances": (2, 12), "genres": (3, 4)}


def classifier_zoo(folder, tasks=CLASSIFIERS, layers=2, steps=40):
    """A body without head, and classifiers of it for tasks with other labels."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    sizes = {**SIZES, "num_hidden_layers": layers}
    config = transformers.BertConfig(vocab_size=27, max_position_embeddings=16, **sizes, **WIDE)
    tokens = tokenizer()
    body = transformers.BertForSequenceClassification(config)
    train(body, (_labelled(tokens, 2, 4 * (step % 5), draw) for step in range(20)))
    save(body.bert, folder / "base")
    for name, (classes, first) in tasks.items():
        model = transformers.BertForSequenceClassification.from_pretrained(folder / "base", num_labels=classes)
        train(model, (_labelled(tokens, classes, first, draw) for _ in range(steps)), 2e-3)
        save(model, folder / name, [f"{name}-{label}" for label in range(classes)])
    return folder


def six_classifiers(folder):
    """The zoo of `SIX`, of one layer."""
    return classifier_zoo(folder, SIX, layers=1, steps=25)


def classifier_adapter(base, folder, classes, first, steps=30):
    """A LoRA adapter of a body, with a head that it saves whole."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    model = transformers.BertForSequenceClassification.from_pretrained(base, num_labels=classes)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=32, task_type="SEQ_CLS"))
    train(model, (_labelled(tokenizer(), classes, first, draw) for _ in range(steps)), 1e-2).save_pretrained(folder)


def _masked(tokens, draw):
    texts, _ = texts_of(5, 0, 16, draw)
    inputs = tokens(texts, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return {**inputs, "labels": inputs["input_ids"]}


def _labelled(tokens, classes, first, draw):
    texts, labels = texts_of(classes, first, 24, draw)
    return {**tokens(texts, return_tensors="pt"), "labels": labels}


# --- language models


HALF = len(WORDS) // 2
# Name -> first of the words, of which each task has a half; by how many words the next one, or the translation, is on.
STRIDES = {"first": (0, 1), "second": (HALF, 5)}
SHIFTS = {"first": (0, 1), "second": (HALF, 2)}


def patterns(name, count, draw):
    """Return texts in which each word stands so many words after the one before it, around a half of the words."""
    return continued(*STRIDES[name], count, draw)


def continued(first, stride, count, draw):
    """Return texts in which each word of a half, from `first` on, stands so many words after the one before it."""
    starts = torch.randint(HALF, (count, 1), generator=draw)
    rows = first + (starts + stride * torch.arange(LENGTH)) % HALF
    return [" ".join(WORDS[index] for index in row) for row in rows.tolist()]


# Six language models of one base: where their words begin, and by how many words the next one is on.
SIX_STRIDES = {
    "ones": (0, 1), "fives": (0, 5), "sevens": (0, 7), "late_ones": (HALF, 1), "late_fives": (HALF, 5),
    "late_sevens": (HALF, 7),
}  # fmt: skip


def six_languages(folder, steps=25):
    """A Llama, and six that continue other patterns: see `SIX_STRIDES`."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    sizes = {**SIZES, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=27, max_position_embeddings=16, **sizes, **WIDE, pad_token_id=0)
    tokens = tokenizer()
    base = transformers.LlamaForCausalLM(config)
    save(train(base, (_masked(tokens, draw) for _ in range(10))), folder / "base")
    for how in SIX_STRIDES.items():
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
        save(train(model, (_continued(tokens, how[1], draw) for _ in range(steps)), 1e-2), folder / how[0])
    return folder


def _continued(tokens, how, draw):
    inputs = tokens(continued(*how, 16, draw), return_tensors="pt")
    return {"input_ids": inputs["input_ids"], "labels": inputs["input_ids"]}


def language_zoo(folder, steps=50, lora=False):
    """A Llama with tied embeddings, and two that continue other patterns, whole or as adapters."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=27, max_position_embeddings=16, **SIZES, **WIDE, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    tokens = tokenizer()
    base = transformers.LlamaForCausalLM(config)
    train(base, (_masked(tokens, draw) for _ in range(10)))
    save(base, folder / "base")
    for name in STRIDES:
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "base")
        if lora:
            model = get_peft_model(model, LoraConfig(r=8, lora_alpha=64, target_modules="all-linear"))
        train(model, (_next(tokens, name, draw) for _ in range(steps)), 1e-2)
        save(model, folder / name)
    return folder


def _next(tokens, name, draw):
    inputs = tokens(patterns(name, 16, draw), return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return {**inputs, "labels": inputs["input_ids"]}


def translated(name, count, draw):
    """Return pairs: a text of a half of the words, and the same with each word so many words on."""
    first, shift = SHIFTS[name]
    rows = torch.randint(HALF, (count, 4), generator=draw)
    return [
        tuple(" ".join(WORDS[first + index % HALF] for index in values) for values in (row, [i + shift for i in row]))
        for row in rows.tolist()
    ]


def translating_zoo(folder, steps=60):
    """A T5, and two that translate by other shifts."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    config = transformers.T5Config(
        vocab_size=27, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, dropout_rate=0.0, pad_token_id=0,
        decoder_start_token_id=0, eos_token_id=2,
    )  # fmt: skip
    tokens = tokenizer()
    base = transformers.T5ForConditionalGeneration(config)
    save(base, folder / "base")
    for name in SHIFTS:
        model = transformers.T5ForConditionalGeneration.from_pretrained(folder / "base")
        save(train(model, (_pairs(tokens, name, draw) for _ in range(steps)), 1e-2), folder / name)
    return folder


def _pairs(tokens, name, draw):
    given, targets = zip(*translated(name, 24, draw), strict=True)
    inputs = tokens(list(given), return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return {**inputs, "labels": tokens(list(targets), return_tensors="pt")["input_ids"]}


# --- classifiers of images


def images_of(channel, count, draw):
    """Return images (n, 3, 8, 8) and labels: which of four quarters is bright in a channel."""
    labels = torch.arange(count) % 4
    images = torch.rand(count, 3, 8, 8, generator=draw)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[channel, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 4
    return images, labels


CHANNELS = {"first": 0, "second": 2}


def image_zoo(folder, steps=40):
    """A ViT without head but with a pooler, and two classifiers with heads of one shape."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    sizes = {**SIZES, "num_hidden_layers": 1, "initializer_range": 0.1}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=4, **sizes)
    whole = transformers.ViTForImageClassification(config)
    train(whole, (_pictures(step % 3, draw) for step in range(40)))
    body = transformers.ViTModel(config)
    body.load_state_dict(whole.vit.state_dict(), strict=False)
    body.save_pretrained(folder / "base")
    for name, channel in CHANNELS.items():
        model = transformers.ViTForImageClassification.from_pretrained(folder / "base", num_labels=4)
        train(model, (_pictures(channel, draw) for _ in range(steps)), 2e-3)
        save(model, folder / name, [f"{name}-{label}" for label in range(4)])
    return folder


def _pictures(channel, draw):
    images, labels = images_of(channel, 24, draw)
    return {"pixel_values": images, "labels": labels}


def write_samples(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
