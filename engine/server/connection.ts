/** The connection of a request. Web streams would cost more than all else that a server computes per token. */

/** Reads the body of a request, and writes that of its response. */
export interface Connection {
  /** Returned by routes that have written a response. */
  readonly sent: Response;
  /** Whether the response is complete or the client has disconnected. */
  readonly closed: boolean;
  /** Reads the body. "too large": it has more than `maxBytes` bytes. "closed": the client disconnected. */
  read(maxBytes: number): Promise<Uint8Array | "too large" | "closed">;
  /** Sends a response of status 200. */
  send(text: string, headers: { readonly [name: string]: string }): void;
  /** Sends status 200 and headers of a response whose body is written. */
  begin(headers: { readonly [name: string]: string }): void;
  /** Writes a part of the body. Returns false if the client should read first. */
  write(text: string): boolean;
  /** Resolves once the client has read, or if `signal` is aborted. */
  drained(signal: AbortSignal): Promise<void>;
  /** Ends the response. */
  end(): void;
  /** Closes the connection: the response cannot be completed. */
  abort(error: Error): void;
  /** Calls an action if the client disconnects. Returns a function that undoes it. */
  onLeave(action: () => void): () => void;
}
