// Asks for a Vulkan adapter, so that a layer that lists what it sees has the occasion to. See adapter_places.ts.
import { create } from "webgpu";

await create([]).requestAdapter();
process.exit(0);
