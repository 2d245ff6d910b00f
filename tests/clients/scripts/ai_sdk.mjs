// Vercel's AI SDK with its OpenAI-compatible and its OpenAI provider: generateText, streamText.

import assert from 'node:assert/strict';
import { ANSWER, MODEL, QUESTION, V1, load } from './expected.mjs';

const { generateText, streamText } = await load('ai');
const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible');
const { createOpenAI } = await load('@ai-sdk/openai');
const settings = { baseURL: V1, apiKey: 'none' };
const models = [
  createOpenAICompatible({ name: 'pillion', includeUsage: true, ...settings })(MODEL),
  createOpenAI(settings).chat(MODEL),
  createOpenAI(settings).completion(MODEL),
];
for (const model of models.slice(0, 2)) {
  const ask = { model, prompt: QUESTION, temperature: 0, maxRetries: 0, maxOutputTokens: 10, seed: 1 };
  const whole = await generateText(ask);
  assert.equal(whole.text, ANSWER);
  assert.ok(whole.usage.outputTokens > 0, JSON.stringify(whole.usage));
  let text = '';
  for await (const piece of streamText(ask).textStream) text += piece;
  assert.equal(text, ANSWER);
}
const answers = await Promise.all(
  Array.from({ length: 20 }, () => generateText({ model: models[0], prompt: QUESTION, temperature: 0, maxRetries: 0 })),
);
assert.deepEqual(new Set(answers.map((answer) => answer.text)), new Set([ANSWER]));
const completed = await generateText({ model: models[2], prompt: QUESTION, temperature: 0, maxRetries: 0 });
assert.ok(completed.text.length > 0);
console.log('generateText and streamText of both providers, 20 at once, completions');
