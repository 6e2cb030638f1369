// Requests a Vulkan adapter, which makes a Vulkan layer print its device list. See adapter_system_info.ts.
import { create } from "webgpu";

await create([]).requestAdapter();
process.exit(0);
