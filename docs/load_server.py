"""Puts a server under load: connections on loopback that each ask again as soon as they are answered.

    mgsd serve --model runs/demo/opcd/model --port 8312 & PID=$!
    python docs/load_server.py 127.0.0.1 8312 --connections 256 --seconds 300 --pid $PID

Of sixteen connections four stream, one leaves within half a second, one asks for four answers to a prompt, ten ask for
one. Prints the server's memory every twenty seconds (with --pid, on Linux), then one JSON object: answers, errors by
kind, latencies, and answers by connection for each kind of connection. Needs nothing but Python.
"""

import argparse
import asyncio
import json
import random
import time

KINDS = ["plain", "stream", "leave", "many"]


def kind_of(connection):
    if connection % 4 == 1:
        return "stream"
    return {3: "leave", 7: "many"}.get(connection % 16, "plain")


def board(rng, side=4):
    rows = [["F"] * side for _ in range(side)]
    for _ in range(3):
        rows[rng.randrange(side)][rng.randrange(side)] = "H"
    rows[0][0], rows[-1][-1] = "S", "G"
    return "\n".join("".join(row) for row in rows)


class Load:
    def __init__(self, args):
        self.args = args
        self.latencies = {kind: [] for kind in KINDS}
        self.answers = [0] * args.connections
        self.tokens = 0
        self.left = 0
        self.errors = {}

    def failed(self, what):
        self.errors[what] = self.errors.get(what, 0) + 1

    async def ask(self, reader, writer, body):
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if "content-length: " in head:
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            self.tokens += answer.get("usage", {}).get("completion_tokens", 0)
        else:
            events = b""
            while length := int((await reader.readuntil(b"\r\n")).strip(), 16):
                events += (await reader.readexactly(length + 2))[:-2]
            await reader.readexactly(2)
            if not events.endswith(b"data: [DONE]\n\n"):
                self.failed("a stream without its end")
        return int(head.split(" ")[1])

    async def connection(self, number, until):
        rng, kind, streams = random.Random(number), kind_of(number), None
        while time.monotonic() < until:
            question = {"role": "user", "content": f"frozenlake\n{board(rng)}\nplan"}
            request = {"messages": [question], "temperature": 0, "max_tokens": self.args.tokens}
            if kind == "stream":
                request["stream"] = True
            if kind == "many":
                request |= {"n": 4, "temperature": 1, "seed": rng.randrange(1 << 30)}
            body = json.dumps(request).encode()
            try:
                streams = streams or await asyncio.open_connection(self.args.host, self.args.port)
                began = time.monotonic()
                if kind == "leave":
                    asked = asyncio.ensure_future(self.ask(*streams, body))
                    await asyncio.wait([asked], timeout=rng.random() / 2)
                    asked.cancel()
                    streams[1].close()
                    self.left, streams = self.left + 1, None
                    continue
                status = await self.ask(*streams, body)
                if status != 200:
                    self.failed(f"status {status}")
                    continue
                self.latencies[kind].append(time.monotonic() - began)
                self.answers[number] += 4 if kind == "many" else 1
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self.failed(type(error).__name__)
                streams = None

    async def memory(self, until):
        began = time.monotonic()
        while self.args.pid and time.monotonic() < until:
            with open(f"/proc/{self.args.pid}/status") as status:
                resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            print(f"{time.monotonic() - began:5.0f} s  {resident / 1000:.1f} MB", flush=True)
            await asyncio.sleep(20)

    async def run(self):
        began = time.monotonic()
        until = began + self.args.seconds
        watch = asyncio.ensure_future(self.memory(until))
        await asyncio.gather(*(self.connection(number, until) for number in range(self.args.connections)))
        watch.cancel()
        return self.report(time.monotonic() - began)

    def report(self, seconds):
        def spread(latencies):
            latencies = sorted(latencies)
            at = lambda share: round(latencies[min(len(latencies) - 1, int(share * len(latencies)))], 3)
            return {"requests": len(latencies), "p50_s": at(0.5), "p90_s": at(0.9), "p99_s": at(0.99), "max_s": at(1)}

        by_kind = {}
        for kind in KINDS:
            counts = sorted(n for i, n in enumerate(self.answers) if kind_of(i) == kind)
            if self.latencies[kind]:
                by_kind[kind] = spread(self.latencies[kind])
                by_kind[kind]["answers_by_connection"] = [counts[0], counts[len(counts) // 2], counts[-1]]
        answers = sum(self.answers)
        return {
            "seconds": round(seconds, 1),
            "answers": answers,
            "answers_per_second": round(answers / seconds, 1),
            "tokens_per_second_without_streams": round(self.tokens / seconds, 1),
            "left_early": self.left,
            "errors": self.errors,
            "by_kind": by_kind,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--pid", type=int, help="process of the server")
    print(json.dumps(asyncio.run(Load(parser.parse_args()).run()), indent=1))


main()
