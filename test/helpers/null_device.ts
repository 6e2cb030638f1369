/** Device that copies bytes and records launches without executing them, for tests of order and bytes. */

import type { Device, DeviceBuffer } from "../../runtime/device.ts";

/** A recorded call of a null device. */
export type NullRecord =
  | {
    readonly op: "launch";
    readonly kernel: string;
    readonly buffers: readonly string[];
    readonly workgroups: readonly [number, number, number];
  }
  | {
    readonly op: "write" | "read";
    readonly buffer: string;
    readonly offset: number;
    readonly bytes: number;
  }
  | { readonly op: "submit" }
  | {
    readonly op: "copy";
    readonly from: string;
    readonly to: string;
    readonly bytes: number;
  };

export interface NullBuffer extends DeviceBuffer {
  readonly label: string;
  readonly data: Uint8Array;
}

/** Null device with its records. */
export interface NullDevice extends Device {
  readonly records: NullRecord[];
  readonly allocated: { readonly label: string; readonly bytes: number }[];
}

/** Creates a null device. `onLaunch` may compute the results of kernels. */
export function createNullDevice(
  name = "null",
  onLaunch?: (kernel: string, buffers: readonly NullBuffer[]) => void,
): NullDevice {
  const records: NullRecord[] = [];
  const allocated: { label: string; bytes: number }[] = [];
  const asNull = (buffer: DeviceBuffer) => buffer as NullBuffer;
  return {
    kind: "cpu",
    name,
    limits: {},
    records,
    allocated,
    prepare(kernels, progress) {
      const total = Object.keys(kernels).length;
      progress?.(total, total);
      return Promise.resolve();
    },
    createBuffer(bytes, label): NullBuffer {
      allocated.push({ label, bytes });
      return { bytes, label, data: new Uint8Array(bytes) };
    },
    range(buffer, offset, bytes): NullBuffer {
      const { label, data } = asNull(buffer);
      return { bytes, label, data: data.subarray(offset, offset + bytes) };
    },
    write(buffer, offset, data) {
      const { label, data: target } = asNull(buffer);
      target.set(data, offset);
      records.push({
        op: "write",
        buffer: label,
        offset,
        bytes: data.byteLength,
      });
    },
    launch(kernel, buffers, workgroups) {
      if (workgroups.includes(0)) return;
      const bound = buffers.map(asNull);
      onLaunch?.(kernel, bound);
      records.push({
        op: "launch",
        kernel,
        buffers: bound.map((b) => b.label),
        workgroups,
      });
    },
    copy(from, fromOffset, to, toOffset, bytes) {
      asNull(to).data.set(
        asNull(from).data.subarray(fromOffset, fromOffset + bytes),
        toOffset,
      );
      records.push({
        op: "copy",
        from: asNull(from).label,
        to: asNull(to).label,
        bytes,
      });
    },
    read(buffer, offset, bytes) {
      records.push({ op: "read", buffer: asNull(buffer).label, offset, bytes });
      return Promise.resolve(asNull(buffer).data.slice(offset, offset + bytes));
    },
    createStaging(use, bytes) {
      return {
        bytes,
        open(buffer, spans) {
          const { label, data } = asNull(buffer);
          return Promise.resolve(spans.map((span) => {
            records.push({ op: use, buffer: label, ...span });
            return data.subarray(span.offset, span.offset + span.bytes);
          }));
        },
        close() {},
      };
    },
    submit() {
      records.push({ op: "submit" });
    },
    idle: () => Promise.resolve(),
    destroy() {},
  };
}
