/**
 * The test library of this project: what test files import as `tap`. In a process that runs several files
 * (scripts/test_group.mjs), `t` is the test of the current file.
 */

import root from "tap";

let current = root;

/** Sets the test that files add to. */
export function addTestsTo(test) {
  current = test;
}

export { root };

export default new Proxy(root, {
  get(_, name) {
    const value = current[name];
    return typeof value === "function" ? value.bind(current) : value;
  },
  set(_, name, value) {
    current[name] = value;
    return true;
  },
});
