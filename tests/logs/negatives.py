"""Logs in which there is no failure of the stack to explain: healthy runs, benign warnings, other programs' failures.

python tests/logs/negatives.py FOLDER      writes them as files, for benchmarks/diagnose.py --negatives FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

LOAD = """Loading checkpoint shards: 100%|##########| 3/3 [00:11<00:00,  3.71s/it]
trainable params: 4,194,304 || all params: 7,066,619,904 || trainable%: 0.0594
"""
END = (
    "{'train_runtime': 812.4, 'train_samples_per_second': 3.9, 'train_loss': 1.31, 'epoch': 1.0}\nTraining finished.\n"
)
TRACE = 'Traceback (most recent call last):\n  File "/home/me/project/{file}", line {line}, in <module>\n    {code}\n'


def losses(start: float, steps: int = 12, rate: float = 0.93) -> str:
    rows = (start * rate**i + (0.03 if i % 3 else -0.02) for i in range(steps))
    return "".join(
        f"{{'loss': {value:.4f}, 'grad_norm': {0.4 + i / 50:.3f}, 'learning_rate': {2e-4 * (1 - i / steps):.6f}, "
        f"'epoch': {i / steps:.2f}}}\n"
        for i, value in enumerate(rows)
    )


WARNINGS = {
    "matmul8": "UserWarning: MatMul8bitLt: inputs will be cast from torch.bfloat16 to float16 during quantization",
    "use-cache": "`use_cache=True` is incompatible with gradient checkpointing. Setting `use_cache=False`.",
    "dtype": "`torch_dtype` is deprecated! Use `dtype` instead!",
    "slow-processor": "Using a slow image processor as `use_fast` is unset and a slow processor was saved with this model.",
    "reentrant": "UserWarning: torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly.",
    "forked": "huggingface/tokenizers: The current process just got forked, after parallelism has already been used. "
    "Disabling parallelism to avoid deadlocks...",
    "pad-eos": "Setting `pad_token_id` to `eos_token_id`:2 for open-end generation.",
    "too-long": "Token indices sequence length is longer than the specified maximum sequence length for this model (3012 > 2048).",
    "special": "Special tokens have been added in the vocabulary, make sure the associated word embeddings are fine-tuned or trained.",
    "kernel": "Detected kernel version 4.18.0, which is below the recommended minimum of 5.5.0; this can cause the process to hang.",
    "head": "Some weights of LlamaForSequenceClassification were not initialized from the model checkpoint at x/y and are "
    "newly initialized: ['score.weight']",
    "symlinks": "UserWarning: `huggingface_hub` cache-system uses symlinks by default to efficiently store duplicated files",
    "tf": "Unable to register cuDNN factory: Attempting to register factory for plugin cuDNN when one has already been registered",
    "compute": "UserWarning: Input type into Linear4bit is torch.float16, but bnb_4bit_compute_dtype=torch.float32 (default).",
    "unused": "Unused kwargs: ['_load_in_4bit', '_load_in_8bit', 'quant_method']. These kwargs are not used in "
    "<class 'transformers.utils.quantization_config.BitsAndBytesConfig'>.",
    "xet": "Xet Storage is enabled for this repo, but the 'hf_xet' package is not installed. Falling back to regular HTTP download.",
    "resume": "'(ReadTimeoutError(\"HTTPSConnectionPool(host='cdn-lfs.huggingface.co', port=443): Read timed out.\"))' "
    "thrown while requesting GET https://cdn-lfs.huggingface.co/x\nTrying to resume download...",
    "workers": "UserWarning: This DataLoader will create 8 worker processes in total. Our suggested max number of worker is 4",
    "merge4": "UserWarning: Merge lora module to 4-bit linear may get different generations due to rounding errors.",
    "nccl-info": "node1:123:123 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>",
}

USER_ERRORS = {
    "key": ("report.py", 12, "row['customer']", "KeyError: 'customer'"),
    "zero": ("stats.py", 4, "total / count", "ZeroDivisionError: division by zero"),
    "attribute": ("app.py", 71, "user.profile.email", "AttributeError: 'NoneType' object has no attribute 'email'"),
    "index": ("parse.py", 9, "parts[3]", "IndexError: list index out of range"),
    "type": ("pay.py", 33, "amount + fee", 'TypeError: can only concatenate str (not "int") to str'),
    "value": ("cli.py", 8, "int(text)", "ValueError: invalid literal for int() with base 10: 'abc'"),
    "name": ("job.py", 5, "reslt", "NameError: name 'reslt' is not defined"),
    "recursion": ("tree.py", 5, "walk(node)", "RecursionError: maximum recursion depth exceeded"),
    "assertion": ("test_x.py", 5, "assert total == 3", "AssertionError: assert 4 == 3"),
    "import": ("main.py", 1, "import mycompany", "ModuleNotFoundError: No module named 'mycompany'"),
    "custom": ("billing.py", 88, "charge(card)", "billing.errors.CardDeclined: insufficient funds"),
    "unbound": ("x.py", 88, "print(y)", "UnboundLocalError: local variable 'y' referenced before assignment"),
    "runtime": ("graph.py", 8, "solve()", "RuntimeError: no path between the nodes"),
    "stop": ("gen.py", 8, "next(it)", "StopIteration"),
    "pandas": ("etl.py", 2, "df.merge(o)", "pandas.errors.MergeError: No common columns to perform merge on"),
}

OTHERS = {
    "nginx": "2024/01/02 10:00:00 [error] 31#31: *7 recv() failed (104: Connection reset by peer) while reading response "
    "header from upstream, client: 10.0.0.8, server: example.org\n",
    "uvicorn": 'INFO:     10.0.0.8:0 - "GET /x HTTP/1.1" 500\nERROR:    Exception in ASGI application\n'
    + TRACE.format(file="api.py", line=4, code="handler()")
    + "ConnectionResetError: [Errno 104] Connection reset by peer\nuvicorn.error: closed\n",
    "django": "django.db.utils.OperationalError: could not connect to server: Connection refused\n",
    "postgres": '2024-01-02 10:00 UTC [7] postgres ERROR:  could not extend file "base/1/2": No space left on device\n',
    "redis": "redis.exceptions.ConnectionError: Error 111 connecting to localhost:6379. Connection refused.\n",
    "java": 'Exception in thread "main" java.lang.OutOfMemoryError: Java heap space\n\tat org.spring.x.Y(Y.java:3)\n',
    "npm": "npm ERR! code ERESOLVE\nnpm ERR! ERESOLVE unable to resolve dependency tree\n",
    "node": "node:internal/process:1\nTypeError: Cannot read properties of undefined (reading 'map')\n    at Object.<anonymous>\n",
    "sshd": "Jan  2 10:00:00 host sshd[77]: Connection reset by 10.0.0.8 port 5022 [preauth]\n",
    "systemd": "Jan  2 10:00:00 host systemd[1]: cron.service: Main process exited, code=exited, status=1/FAILURE\n",
    "kafka": "kafka.errors.KafkaTimeoutError: Failed to update metadata after 60.0 secs.\n",
    "selenium": "selenium.common.exceptions.TimeoutException: Message: timed out waiting for element\n",
    "smtp": "smtplib.SMTPAuthenticationError: (535, b'5.7.8 Authentication failed')\n",
    "boto": 'botocore.exceptions.ReadTimeoutError: Read timeout on endpoint URL: "https://s3.example.org"\n',
    "mysql": "pymysql.err.OperationalError: (2003, \"Can't connect to MySQL server on 'db' (timed out)\")\n",
    "gcc": "main.c:3:5: error: 'x' undeclared (first use in this function)\nmake: *** [main.o] Error 1\n",
    "pytest": "FAILED tests/test_a.py::test_x - assert 1 == 2\n1 failed, 30 passed in 0.5s\n",
    "flask": "werkzeug.exceptions.BadRequestKeyError: 400 Bad Request: The browser sent a request that flask could not understand.\n",
    "terraform": "Error: Error acquiring the state lock (terraform)\n",
    "bluetooth": "kernel: Bluetooth: Adapter hci0 not found\nNetworkManager: Adapter wlan0 not found, retrying\n",
    "pip-check": "trl 1.16.0 requires transformers>=5.2.0, which is not installed.\n",
    "argparse": "usage: report.py [-h] --data DATA\nreport.py: error: the following arguments are required: --data\n",
    "excel": "ValueError: Worksheet index 3 is invalid, 2 worksheets found\nIndexError: Index 12 out of range\n",
    "password": "login failed for user me: password is required\n",
    "tmp": "cron: TMPDIR is set to '/var/tmp'\nbackup finished\n",
    "empty": "",
    "blank": "\n\n   \n",
    "prose": "We trained for an hour and everything was fine.\n",
}


def logs() -> dict[str, str]:
    """All of them by name; at least 60."""
    found = {
        f"healthy-{start:.0f}-{steps}": LOAD + losses(start, steps) + END
        for start in (2.4, 4.0, 11.0)
        for steps in (4, 12)
    }
    found["healthy-ranks"] = "".join(
        f"[rank{i % 4}]: {line}\n" for i, line in enumerate((LOAD + losses(2.1) + END).splitlines())
    )
    found["healthy-bars"] = (
        LOAD + "\r".join(f"  {i}%|#   | {i}/100 [00:{i % 60:02d}<01:00,  1.9it/s]" for i in range(100)) + "\n" + END
    )
    found["healthy-pip"] = (
        "Collecting torch\nInstalling collected packages: torch, peft\nSuccessfully installed peft-0.21.2 torch-2.13.0\n"
    )
    found["healthy-chinese"] = "开始训练\n" + losses(2.2) + "训练完成\n"
    found |= {f"warning-{name}": LOAD + text + "\n" + losses(2.2) + END for name, text in WARNINGS.items()}
    found |= {
        f"user-{name}": TRACE.format(file=file, line=line, code=code) + error + "\n"
        for name, (file, line, code, error) in USER_ERRORS.items()
    }
    found |= {f"other-{name}": text for name, text in OTHERS.items()}
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in logs().items():
        (folder / f"{name}.log").write_text(text, encoding="utf-8")
