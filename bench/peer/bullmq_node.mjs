// BullMQ's own package on Node.js, 50 jobs at a time: `worker`, or `drive SECONDS`, the course of drive.py.
import { createRequire } from "node:module";

const { Queue, QueueEvents, Worker } = createRequire(process.env.PEER_HOME + "/")("bullmq");
const url = new URL(process.env.PEER_URL);
const connection = { host: url.hostname, port: Number(url.port), maxRetriesPerRequest: null };
const PROMPT_TOKENS = 128, MAX_TOKENS = 16, VOCABULARY = 32000, CHUNK = 500, LEAST = 300, MOST = 30000;
const ANSWER = Array.from({ length: MAX_TOKENS }, (_, i) => 31000 + i);
const KEEP = { removeOnComplete: { age: 300 } };

function check(found, what) {
  if (!found) throw new Error(what);
}

async function drive(seconds) {
  const queue = new Queue("peer", { connection });
  const events = new QueueEvents("peer", { connection, lastEventId: "0" });
  const results = new Map();
  let wake = () => {};
  events.on("completed", ({ jobId, returnvalue }) => {
    results.set(jobId, returnvalue);
    wake();
  });
  await events.waitUntilReady();

  async function ask(n) {
    const prompts = Array.from({ length: n }, () =>
      Array.from({ length: PROMPT_TOKENS }, () => Math.floor(Math.random() * VOCABULARY)));
    const began = performance.now();
    const jobs = [];
    for (let i = 0; i < n; i += CHUNK) {
      const data = prompts.slice(i, i + CHUNK);
      jobs.push(...await queue.addBulk(data.map((prompt) =>
        ({ name: "model", data: { prompt, max_tokens: MAX_TOKENS }, opts: KEEP }))));
    }
    while (results.size < n) await new Promise((resolve) => { wake = resolve; });
    const answers = jobs.map((job) => results.get(job.id));
    const took = (performance.now() - began) / 1000;
    results.clear();
    for (const tokens of answers) check(tokens.length === MAX_TOKENS, `not ${MAX_TOKENS} tokens: ${tokens}`);
    return took;
  }

  await ask(1);
  let n = 50, took = await ask(n);
  for (const share of [0.3, 1]) {
    n = Math.max(LEAST, Math.min(MOST, Math.floor(share * seconds * n / took)));
    took = await ask(n);
  }
  console.log(JSON.stringify({ requests: n, seconds: took }));
  process.exit(0);
}

if (process.argv[2] === "worker")
  new Worker("peer", async (job) => ANSWER.slice(0, job.data.max_tokens), { connection, concurrency: 50, ...KEEP });
else
  drive(Number(process.argv[3]));
