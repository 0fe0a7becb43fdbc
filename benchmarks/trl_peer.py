"""TRL's side of benchmarks/tuning.py: GRPOTrainer and SFTTrainer with peft, a step per ask, behind a pipe.

Runs under another Python (trl 1.16.0, peft, transformers, torch); imports nothing of Shoal. The trainer's own loop runs
in a thread and waits before each step, so that the other program can have its turn; what its methods take is timed.
"""

from __future__ import annotations

import json
import queue
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from pipe import answer_asks, peak_bytes

LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Peer:
    def start(self, method: str, folder: str, **options: Any) -> dict[str, Any]:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

        torch.set_num_threads(options["threads"])
        here, peer = Path(folder), self
        self.asks: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.times: dict[str, float] = {}
        self.tokens = self.padding = 0
        bf16 = options["dtype"] == "bfloat16"
        dtype = torch.bfloat16 if bf16 else torch.float32
        model = AutoModelForCausalLM.from_pretrained(here / "model", dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(here / "model")
        shared = {
            "output_dir": tempfile.mkdtemp(),
            "use_cpu": True,
            "bf16": bf16,
            "learning_rate": 1e-5,
            "max_steps": 1_000_000,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "adam_beta2": 0.99,
            "weight_decay": 0.0,
            "seed": 0,
        }
        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LORA, task_type="CAUSAL_LM")

        class Turns(TrainerCallback):
            """Each step begins when it is asked for, and its end is told."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if not peer.wait():
                    control.should_training_stop = True

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                peer.told()

        if method == "grpo":
            from trl import GRPOConfig, GRPOTrainer

            rows = [json.loads(line) for line in (here / "questions.jsonl").read_text().splitlines()]
            data = Dataset.from_list([{"prompt": [{"role": "user", "content": r["prompt"]}]} for r in rows])
            answers = options["prompts"] * options["generations"]
            rows_at_once = min(options["rows"], answers)
            settings = GRPOConfig(
                **shared,
                per_device_train_batch_size=rows_at_once,
                gradient_accumulation_steps=answers // rows_at_once,
                num_generations=options["generations"],
                max_completion_length=options["tokens"],
                generation_kwargs={"min_new_tokens": options["tokens"]},
                loss_type="dapo",
                scale_rewards="none",
                beta=0.0,
                temperature=1.0,
            )

            def spread(completions: list[Any], **_: Any) -> list[float]:
                texts = [completion[0]["content"] for completion in completions]
                return [zlib.crc32(text.encode("utf-8", "replace")) / 2**32 for text in texts]

            class Timed(GRPOTrainer):
                def _generate(self, *given: Any, **named: Any) -> Any:
                    with peer.timed("rollout"):
                        return super()._generate(*given, **named)

                def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
                    if torch.is_grad_enabled():
                        return super()._get_per_token_logps_and_entropies(*given, **named)
                    with peer.timed("logprobs"):
                        return super()._get_per_token_logps_and_entropies(*given, **named)

                def _generate_and_score_completions(self, *given: Any, **named: Any) -> Any:
                    with peer.timed("scored"):
                        out = super()._generate_and_score_completions(*given, **named)
                    peer.tokens += int(out["completion_mask"].sum())
                    return out

            trainer: Any = Timed(
                model=model, args=settings, train_dataset=data, processing_class=tokenizer,
                reward_funcs=spread, peft_config=lora, callbacks=[Turns()],
            )  # fmt: skip
        else:
            from trl import SFTConfig, SFTTrainer

            rows = [json.loads(line)["messages"] for line in (here / "rows.jsonl").read_text().splitlines()]
            data = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
            lengths = [len(tokenizer.apply_chat_template(row, return_dict=False)) for row in rows]
            at_once = max(1, round(2048 / (sum(lengths) / len(lengths))))
            settings = SFTConfig(
                **shared, per_device_train_batch_size=at_once, max_length=512, completion_only_loss=True
            )

            class Counted(SFTTrainer):
                def training_step(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
                    real = int(inputs["attention_mask"].sum())
                    peer.tokens += real
                    peer.padding += inputs["input_ids"].numel() - real
                    return super().training_step(model, inputs, *given, **named)

            trainer = Counted(
                model=model, args=settings, train_dataset=data, processing_class=tokenizer,
                peft_config=lora, callbacks=[Turns()],
            )  # fmt: skip
        self.thread = threading.Thread(target=self.train, args=(trainer,), daemon=True)
        self.thread.start()
        return {"trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)}

    def train(self, trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException as error:
            self.answers.put({"error": f"{type(error).__name__}: {error}"})
            raise

    def timed(self, name: str) -> Any:
        import contextlib

        @contextlib.contextmanager
        def clock() -> Any:
            begin = time.perf_counter()
            yield
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - begin

        return clock()

    # ---- in the trainer's thread

    def wait(self) -> bool:
        wanted = self.asks.get() == "step"
        self.times, self.tokens, self.padding, self.begin = {}, 0, 0, time.perf_counter()
        return wanted

    def told(self) -> None:
        seconds = time.perf_counter() - self.begin
        apart = {key: self.times.get(key, 0.0) for key in ("rollout", "logprobs")}
        apart["rest"] = self.times.get("scored", 0.0) - sum(apart.values()) if self.times else 0.0
        apart["update"] = seconds - sum(apart.values())
        self.answers.put({"seconds": seconds, "tokens": self.tokens, "padding": self.padding, **apart})

    # ---- asked

    def step(self) -> dict[str, Any]:
        self.asks.put("step")
        answer = self.answers.get()
        if "error" in answer:
            raise SystemExit(answer["error"])
        return answer

    def memory(self) -> dict[str, Any]:
        return {"peak_bytes": peak_bytes()}


def main() -> None:
    pipe = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    answer_asks(Peer(), pipe)


if __name__ == "__main__":
    main()
