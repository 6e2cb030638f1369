/** Which version of the package this is. */

/** As in package.json, which is not there where the engine is compiled to. */
export const VERSION = "0.1.0";
