/** Loaded by `node --import`: koffi loads no library, as on a machine without MPI. */

import process from "node:process";

const { dlopen } = process;
process.dlopen = (module, file, ...rest) => {
  dlopen.call(process, module, file, ...rest);
  if (!/koffi\.node$/.test(file)) return;
  module.exports.load = (name) => {
    throw new Error(`there is no '${name}'`);
  };
};
