// OpenAI's npm package against a server: node node_client.mjs BASE_URL MODEL. NODE_PATH or a node_modules folder above has it.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const require = createRequire(path.join(process.env.PILLION_TEST_NODE ?? process.cwd(), 'client.js'));
const { default: OpenAI } = await import(pathToFileURL(require.resolve('openai')).href).then((found) =>
  found.default?.default ? found.default : found,
);

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const question = 'What is 17 + 25?';
const greedy = { model, temperature: 0, max_tokens: 10 };

const whole = await client.completions.create({ ...greedy, prompt: question });
assert.equal(whole.choices[0].text, '42');
assert.equal(whole.choices[0].finish_reason, 'stop');

let text = '';
for await (const piece of await client.completions.create({ ...greedy, prompt: question, stream: true })) {
  text += piece.choices[0].text;
}
assert.equal(text, '42');

const messages = [{ role: 'user', content: question }];
const chat = await client.chat.completions.create({ ...greedy, messages });
assert.equal(chat.choices[0].message.role, 'assistant');

const stream = await client.chat.completions.create({
  ...greedy,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
let said = '';
let usage = null;
for await (const piece of stream) {
  said += piece.choices[0]?.delta?.content ?? '';
  usage = piece.usage ?? usage;
}
assert.equal(said, chat.choices[0].message.content);
assert.equal(usage.completion_tokens, chat.usage.completion_tokens);

const names = [];
for await (const found of client.models.list()) names.push(found.id);
assert.ok(names.includes(model), names.join());
assert.equal((await client.models.retrieve(model)).id, model);

await assert.rejects(client.completions.create({ model: 'none', prompt: 'a' }), OpenAI.NotFoundError);
await assert.rejects(
  client.chat.completions.create({ model, messages, seed: 1 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === 'seed' && error.code === 'unsupported',
);

const answers = await Promise.all(
  Array.from({ length: 40 }, () => client.completions.create({ ...greedy, prompt: question })),
);
assert.deepEqual(new Set(answers.map((answer) => answer.choices[0].text)), new Set(['42']));
console.log('all well');
