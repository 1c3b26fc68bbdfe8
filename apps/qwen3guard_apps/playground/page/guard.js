// What the page asks of its server: a stream over a WebSocket, one answer a message, and Gen's verdict.

export class GuardError extends Error {
  constructor(sentence, code) {
    super(sentence);
    this.code = code;
  }
}

export class Stopped extends Error {}

export class Stream {
  #socket = new WebSocket(`ws://${location.host}/stream`);
  #waiting = null;
  #failure = null;

  constructor() {
    this.#socket.onmessage = ({ data }) => this.#answered(JSON.parse(data));
    this.#socket.onclose = ({ code }) => {
      const sentence = code === 1009 ? "The text is too long for one message." : "The playground has gone: start it again.";
      this.#fail(new GuardError(sentence, "CLOSED"));
    };
  }

  open(prompt, policy) {
    return this.#ask({ prompt, policy });
  }

  step(text) {
    return this.#ask({ text });
  }

  finish() {
    return this.#ask({ text: null });
  }

  stop() {
    this.#fail(new Stopped());
    // The console would complain of a socket that is closed before it is open.
    if (this.#socket.readyState === WebSocket.CONNECTING) this.#socket.onopen = () => this.#socket.close();
    else this.#socket.close();
  }

  async #ask(message) {
    if (this.#socket.readyState === WebSocket.CONNECTING) {
      await new Promise((resolve) => {
        this.#socket.addEventListener("open", resolve);
        this.#socket.addEventListener("close", resolve);
      });
    }
    if (this.#failure) throw this.#failure;
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
      this.#socket.send(JSON.stringify(message));
    });
  }

  #answered(answer) {
    if (answer.error) this.#fail(new GuardError(answer.error, answer.code));
    else this.#waiting?.resolve(answer);
  }

  #fail(error) {
    this.#failure ??= error;
    this.#waiting?.reject(this.#failure);
  }
}

export async function classify(prompt, response, policy, signal) {
  let answer;
  try {
    const reply = await fetch("/classify", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prompt, response, policy }),
      signal,
    });
    answer = await reply.json();
  } catch (error) {
    if (error.name === "AbortError") throw new Stopped();
    throw new GuardError("The playground has gone: start it again.", "CLOSED");
  }
  if (answer.error) throw new GuardError(answer.error, answer.code);
  return answer;
}
