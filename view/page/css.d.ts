/** Style sheets, which esbuild writes beside the program. */
declare module "*.css" {}
