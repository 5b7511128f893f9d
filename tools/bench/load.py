"""A small HTTP load driver for OpenAI-compatible servers on the loopback: standard library only.

Each client sends its requests one after the other to /v1/completions, streamed, and notes when text
arrives. Tokens are counted by the server's `usage`, never by chunks: a server may put several in one.
"""

import asyncio
import dataclasses
import json
import random
import statistics
import time

WORDS = """river stone lantern harbour window garden letter engine copper winter bridge market doctor kitchen
forest silver teacher captain village morning basket thunder painter station mountain candle orchard
journey whisper carpet farmer bottle summer shadow hammer meadow library soldier ticket blanket""".split()


@dataclasses.dataclass
class Answer:
    sent_s: float            # perf_counter when the request was sent
    arrivals_s: list[float]  # when each piece of text arrived
    ended_s: float
    prompt_tokens: int
    completion_tokens: int


def prompt(seed: int) -> str:
    """About 94 tokens of English, a different one for every seed; two that begin alike part within words."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choice(WORDS) for _ in range(10)) for _ in range(8)]
    return f"{rng.choice(WORDS).capitalize()} {rng.choice(WORDS)} notes. " + ". ".join(lines) + ". Then"


async def _body_lines(reader: asyncio.StreamReader):
    """Lines of an HTTP/1.1 body, chunked or ended by close, each with the time its bytes arrived."""
    status = await reader.readline()
    headers = {}
    while (line := (await reader.readline()).strip()):
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip().lower()
    chunked = headers.get(b"transfer-encoding") == b"chunked"
    ok, rest = b" 200 " in status, b""
    while True:
        if chunked:
            size = int((await reader.readline()).split(b";")[0], 16)
            data = (await reader.readexactly(size + 2))[:-2]
        else:
            data = await reader.read(65536)
        now = time.perf_counter()
        if not data:
            break
        rest += data
        if ok:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r"), now
    if not ok:
        raise RuntimeError(f"server answered {status.decode().strip()}: {rest[:500].decode(errors='replace')}")


async def complete(port: int, body: dict) -> Answer:
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        sent = time.perf_counter()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload)
        arrivals, usage, ended = [], None, sent
        async for line, now in _body_lines(reader):
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"server sent an error: {event['error']}")
            usage, ended = event.get("usage") or usage, now
            if any(choice.get("text") for choice in event.get("choices", [])):
                arrivals.append(now)
        if usage is None or not arrivals:
            raise RuntimeError("the stream ended without text or without usage")
        return Answer(sent, arrivals, ended, usage["prompt_tokens"], usage["completion_tokens"])
    finally:
        writer.close()


async def drive(port: int, clients: int, requests_each: int, first_seed: int, body: dict) -> dict:
    """One round: figures over all requests. Seeds first_seed.. are used up, one a request."""
    async def client(number: int) -> list[Answer]:
        seeds = range(first_seed + number * requests_each, first_seed + (number + 1) * requests_each)
        return [await complete(port, {**body, "prompt": prompt(seed)}) for seed in seeds]

    cpu = time.process_time()
    answers = [a for group in await asyncio.gather(*map(client, range(clients))) for a in group]
    cpu = time.process_time() - cpu
    for answer in answers:
        if answer.completion_tokens != body["max_tokens"]:
            raise RuntimeError(f"asked for {body['max_tokens']} tokens, got {answer.completion_tokens}: "
                               "does the server honour ignore_eos?")
    wall = max(a.ended_s for a in answers) - min(a.sent_s for a in answers)
    tokens = sum(a.completion_tokens for a in answers)
    gaps = sorted(b - a for answer in answers for a, b in zip(answer.arrivals_s, answer.arrivals_s[1:]))
    return {
        "requests": len(answers),
        "prompt_tokens": sum(a.prompt_tokens for a in answers),
        "completion_tokens": tokens,
        "wall_s": wall,
        "tokens_per_s": tokens / wall,
        "ttft_p50_ms": 1e3 * statistics.median(a.arrivals_s[0] - a.sent_s for a in answers),
        "itl_p50_ms": 1e3 * gaps[len(gaps) // 2] if gaps else None,
        "itl_p95_ms": 1e3 * gaps[int(len(gaps) * 0.95)] if gaps else None,
        "tokens_per_chunk": tokens / sum(len(a.arrivals_s) for a in answers),
        "client_cpu_share": cpu / wall,
    }
