// LangChain.js's ChatOpenAI and OpenAI: whole, streamed, in a batch.

import assert from 'node:assert/strict';
import { ANSWER, MODEL, QUESTION, V1, load } from './expected.mjs';

const { ChatOpenAI, OpenAI } = await load('@langchain/openai');
const common = { model: MODEL, apiKey: 'none', temperature: 0, maxRetries: 0, configuration: { baseURL: V1 } };
const chat = new ChatOpenAI(common);
const whole = await chat.invoke(QUESTION);
assert.equal(whole.content, ANSWER);
assert.ok(whole.usage_metadata.output_tokens > 0);
let text = '';
for await (const piece of await chat.stream(QUESTION)) text += piece.content;
assert.equal(text, ANSWER);
const answers = await chat.batch(Array.from({ length: 20 }, () => QUESTION));
assert.deepEqual(new Set(answers.map((answer) => answer.content)), new Set([ANSWER]));
const completions = new OpenAI({ ...common, maxTokens: 10 });
assert.equal((await completions.invoke(QUESTION)).trim(), ANSWER);
console.log('ChatOpenAI and OpenAI: whole, streamed, a batch of 20');
