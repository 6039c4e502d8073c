"""The least that could ask the same: bare aiohttp and a semaphore. It asks again at once and remembers nothing."""

import asyncio

import aiohttp
from asker import Task, asking, parse_task


async def ask_all(task: Task) -> int:
    """Ask until every question has an answer; returns the number of answers."""
    semaphore, url = asyncio.Semaphore(task.concurrency), f"{task.base_url}/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=task.concurrency)) as session:

        async def ask(question: str) -> bool:
            body = {"model": "stub", "messages": [{"role": "user", "content": question}], "max_tokens": 512}
            async with semaphore:
                while True:
                    async with session.post(url, json=body) as response:
                        if response.status == 200:
                            return bool((await response.json())["choices"][0]["message"]["content"])

        return sum(await asyncio.gather(*(ask(question) for question in task.questions())))


if __name__ == "__main__":
    given = parse_task()
    with asking(given, packages=["aiohttp"], settings="tries again at once, remembers nothing") as result:
        result["delivered"] = asyncio.run(ask_all(given))
