/** Style sheets, which esbuild writes next to the program. */
declare module "*.css" {}
