// What the scripts of this folder share.

import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

export const QUESTION = 'What is 17 + 25?';
export const ANSWER = '42';
export const [URL, MODEL] = process.argv.slice(2);
export const V1 = `${URL}/v1`;

// The packages are in the folder of PILLION_TEST_NODE, not above this file.
const require = createRequire(path.join(process.env.PILLION_TEST_NODE, 'client.js'));
export const load = async (name) => import(pathToFileURL(require.resolve(name)).href);
