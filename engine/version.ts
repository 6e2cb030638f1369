/** Version of the package, as in package.json, which does not exist where the engine is compiled to. */

/** As in package.json, which does not exist where the engine is compiled to. */
export const VERSION = "0.1.0";
