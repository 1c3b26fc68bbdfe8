// A client for Node: the two calls of a guard, by KServe's gRPC protocol. docs/classify.md and docs/streams.md say why.

import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const PROTO = fileURLToPath(new URL("../proto/open_inference_grpc.proto", import.meta.url));
const { inference } = grpc.loadPackageDefinition(loader.loadSync(PROTO, { keepCase: true, longs: Number }));

// The index orders of every array of probabilities: Unsafe is 1.
const LEVELS = ["Safe", "Unsafe", "Controversial"];
const CATEGORIES = [
  "Violent",
  "Sexual Content or Sexual Acts",
  "Suicide & Self-Harm",
  "Politically Sensitive Topics",
  "PII",
  "Copyright Violation",
  "Non-violent Illegal Acts",
  "Unethical Acts",
  "Jailbreak",
];
const RESPONSE_CATEGORIES = 8; // only prompts are judged for Jailbreak
const VERDICT = [
  "SEVERITY",
  "CATEGORIES",
  "REFUSAL",
  "SEVERITY_PROBABILITIES",
  "STRICT_UNSAFE",
  "LOOSE_UNSAFE",
  "UNSAFE",
  "ANSWER_STATUS",
  "NOTICE",
];
const STEP = [
  "PENDING",
  "LENGTH",
  "FINAL_TOKENS",
  "FINAL_CHARACTERS",
  "TOKEN_ENDS",
  "RISK_PROBABILITIES",
  "CATEGORY_PROBABILITIES",
  "STRICT_FLAG",
  "LOOSE_FLAG",
  "FLAG",
];
const OPENING = [...STEP, "PROMPT_RISK_PROBABILITIES", "PROMPT_CATEGORY_PROBABILITIES", "PROMPT_FLAG", "NOTICE"];
const GRACE_MS = 60_000; // a request that is cancelled on the wire may end Triton 24.10: gRPC's deadline comes later
const REPLAYS = 5;

export class GuardError extends Error {
  constructor(code, sentence) {
    super(sentence);
    this.code = code;
  }
}

// What Triton and gRPC say, where the guard itself says nothing.
const OTHERS = [
  [/must specify the START flag/, "SESSION_LOST"],
  [/expecting header/, "TOKEN_REFUSED"],
  [/Stub process/, "UNREACHABLE"],
  [/unknown model|is not ready/, "GUARD_NOT_SERVED"],
  [/queue size/, "OVERLOADED"],
  [/timeout expired|timeout of the corresponding sequence/, "DEADLINE_EXCEEDED"],
];
const STATUS = {
  [grpc.status.UNAVAILABLE]: "UNREACHABLE",
  [grpc.status.CANCELLED]: "UNREACHABLE",
  [grpc.status.DEADLINE_EXCEEDED]: "DEADLINE_EXCEEDED",
  [grpc.status.INVALID_ARGUMENT]: "INVALID_REQUEST",
};

function translated({ code, details }) {
  const own = /\[([A-Z][A-Z_]+)\] ([^\n]*)/.exec(details);
  if (own) return new GuardError(own[1], own[2]);
  const [, known] = OTHERS.find(([words]) => words.test(details)) ?? [];
  return new GuardError(known ?? STATUS[code] ?? "INTERNAL", details.split("\n")[0]);
}

function utf8(text) {
  if (/\p{Surrogate}/u.test(text)) throw new GuardError("INVALID_ENCODING", "The text has half of a surrogate pair.");
  return { datatype: "BYTES", shape: [1, 1], contents: { bytes_contents: [Buffer.from(text, "utf8")] } };
}

const integer = (value) => ({ datatype: "INT64", shape: [1, 1], contents: { int64_contents: [value] } });
const flag = (value) => ({ datatype: "BOOL", shape: [1, 1], contents: { bool_contents: [value] } });

// The values of one output: little-endian, one behind the other; a text has its length in bytes before it.
function values({ name, datatype, shape }, raw) {
  const read = [];
  for (let at = 0; at < raw.length; ) {
    if (datatype === "BYTES") {
      const end = at + 4 + raw.readUInt32LE(at);
      read.push(raw.toString("utf8", at + 4, end));
      at = end;
    } else if (datatype === "INT64") {
      read.push(Number(raw.readBigInt64LE(at)));
      at += 8;
    } else if (datatype === "FP32") {
      read.push(raw.readFloatLE(at));
      at += 4;
    } else {
      read.push(raw.readUInt8(at) !== 0);
      at += 1;
    }
  }
  const count = shape.reduce((product, size) => product * size, 1);
  if (read.length !== count || (datatype === "FP32" && !read.every(Number.isFinite))) {
    throw new GuardError("INTERNAL", `The server's ${name} is no verdict.`);
  }
  return read;
}

const likeliest = (shares) => shares.indexOf(Math.max(...shares));
const byLevel = (shares) => Object.fromEntries(LEVELS.map((name, index) => [name, shares[index]]));
const rows = (flat, width) =>
  Array.from({ length: flat.length / width }, (_, row) => flat.slice(row * width, (row + 1) * width));

function judged(risks, categories) {
  const severity = LEVELS[likeliest(risks)];
  const category = severity === "Safe" ? null : CATEGORIES[likeliest(categories)];
  return { severity, category, probabilities: byLevel(risks) };
}

// `tls` is the PEM of an authority, or null for a server on this machine; `token` is the server's, if it wants one.
export class Guard {
  #scope = randomUUID(); // this client alone shares what was computed for its conversations

  constructor(url, { timeoutMs = 30_000, tls = null, token = null } = {}) {
    const credentials = tls ? grpc.credentials.createSsl(tls) : grpc.credentials.createInsecure();
    this.calls = new inference.GRPCInferenceService(url, credentials, {
      "grpc.max_receive_message_length": -1,
    });
    this.timeoutMs = timeoutMs;
    this.token = token;
  }

  close() {
    this.calls.close();
  }

  // Judges the last turn of a conversation: {prompt, response}, or {messages} in OpenAI's form, a list or its JSON.
  async classify(conversation) {
    const reply = await this.infer("classify", asked(conversation), VERDICT, { scope: { string_param: this.#scope } });
    return {
      severity: reply.SEVERITY[0],
      categories: reply.CATEGORIES,
      refusal: reply.REFUSAL[0] ?? null,
      probabilities: byLevel(reply.SEVERITY_PROBABILITIES),
      strict: reply.STRICT_UNSAFE[0],
      loose: reply.LOOSE_UNSAFE[0],
      unsafe: reply.UNSAFE[0],
      answer_status: reply.ANSWER_STATUS[0],
      notice: reply.NOTICE[0],
    };
  }

  // Opens a stream: what is written to it is judged as the response to the conversation.
  async stream(conversation, policy = {}) {
    const stream = new Stream(this, this.#scope, asked(conversation), policy);
    await stream.open();
    return stream;
  }

  // One request of batch size 1. Returns the values of each output by name; never a reply that lacks one.
  infer(model, tensors, outputs, parameters, session = "") {
    const request = {
      model_name: model,
      id: randomUUID(),
      inputs: Object.entries(tensors).map(([name, tensor]) => ({ name, ...tensor })),
      outputs: outputs.map((name) => ({ name })),
      parameters: { ...parameters, timeout: { int64_param: Math.round(this.timeoutMs * 1000) } },
    };
    const metadata = new grpc.Metadata();
    if (session) metadata.set("x-guard-session", encodeURIComponent(session));
    if (this.token) metadata.set("triton-grpc-protocol-guard-token", this.token);
    return new Promise((resolve, reject) => {
      const late = () => reject(new GuardError("DEADLINE_EXCEEDED", "The server did not answer in time."));
      const timer = setTimeout(late, this.timeoutMs);
      const deadline = Date.now() + this.timeoutMs + GRACE_MS;
      this.calls.ModelInfer(request, metadata, { deadline }, (error, reply) => {
        clearTimeout(timer);
        try {
          if (error) throw translated(error);
          const found = Object.fromEntries(
            reply.outputs.map((output, index) => [output.name, values(output, reply.raw_output_contents[index])]),
          );
          const missing = outputs.find((name) => !(name in found));
          if (missing) throw new GuardError("INTERNAL", `The server's reply has no ${missing}.`);
          resolve(found);
        } catch (failure) {
          reject(failure instanceof GuardError ? failure : new GuardError("INTERNAL", "The server's reply cannot be read."));
        }
      });
    });
  }
}

function asked({ prompt, response, messages }) {
  if (messages !== undefined) {
    return { MESSAGES: utf8(typeof messages === "string" ? messages : JSON.stringify(messages)) };
  }
  const tensors = { PROMPT: utf8(prompt) };
  return response === undefined ? tensors : { ...tensors, RESPONSE: utf8(response) };
}

// One response. A session that the server has lost is opened again under another id, with everything written so far.
class Stream {
  #session = "";
  #position = 0; // where the tokens that are not final begin
  #tail = ""; // the text of these tokens
  #begin = 0; // where that text begins in the response, in characters
  #written = "";
  #lost = false;

  constructor(guard, scope, conversation, { strict, debounce, blocked, thresholds }) {
    this.guard = guard;
    this.scope = { string_param: scope };
    this.opening = { ...conversation };
    if (strict !== undefined) this.opening.STRICT = flag(strict);
    if (debounce !== undefined) this.opening.DEBOUNCE = integer(debounce);
    if (blocked !== undefined) this.opening.BLOCKED = utf8(JSON.stringify(blocked));
    if (thresholds !== undefined) this.opening.THRESHOLDS = utf8(JSON.stringify(thresholds));
  }

  async open() {
    this.#session = randomUUID();
    [this.#position, this.#tail, this.#begin] = [0, "", 0];
    try {
      const reply = await this.#send(this.opening, OPENING, { sequence_start: { bool_param: true }, scope: this.scope });
      this.#position = reply.LENGTH[0];
      this.prompt = {
        ...judged(reply.PROMPT_RISK_PROBABILITIES, reply.PROMPT_CATEGORY_PROBABILITIES),
        flag: reply.PROMPT_FLAG[0],
      };
      this.notice = reply.NOTICE[0];
    } catch (error) {
      await this.end(); // Triton keeps a record of a START that the guard refused, until its END
      throw error;
    }
  }

  // Judges the next piece of the response, cut anywhere between two code points. Returns the verdicts that no later
  // text can change; those of its last tokens come with the next piece, or with `finish`.
  async step(piece) {
    const verdicts = await this.#replaying(() => this.#write(piece, {}));
    this.#written += piece;
    return verdicts;
  }

  // Ends the response. Returns the verdicts of the tokens that were not final.
  async finish() {
    return this.#replaying(() => this.#write("", { sequence_end: { bool_param: true } }));
  }

  // Gives the stream up, also after an error: the server forgets the session.
  async end() {
    await this.#send({}, STEP, { sequence_end: { bool_param: true } }).catch(() => {});
  }

  async #write(piece, parameters) {
    const text = this.#tail + piece;
    const reply = await this.#send({ TEXT: utf8(text) }, STEP, parameters);
    const characters = [...text];
    const final = reply.FINAL_TOKENS[0];
    const risks = rows(reply.RISK_PROBABILITIES, LEVELS.length);
    const categories = rows(reply.CATEGORY_PROBABILITIES, RESPONSE_CATEGORIES);
    if (risks.length !== categories.length || risks.length < final) {
      throw new GuardError("INTERNAL", "The server has not judged each token.");
    }
    const verdicts = risks.slice(0, final).map((risk, index) => ({
      position: this.#position + index,
      text: characters.slice(index ? reply.TOKEN_ENDS[index - 1] : 0, reply.TOKEN_ENDS[index]).join(""),
      ...judged(risk, categories[index]),
      end: this.#begin + reply.TOKEN_ENDS[index],
      strict: reply.STRICT_FLAG[index],
      loose: reply.LOOSE_FLAG[index],
      flag: reply.FLAG[index],
    }));
    this.#tail = characters.slice(reply.FINAL_CHARACTERS[0]).join("");
    this.#begin += reply.FINAL_CHARACTERS[0];
    this.#position += final;
    return verdicts;
  }

  async #send(tensors, outputs, parameters) {
    const all = { sequence_id: { string_param: this.#session }, ...parameters };
    for (;;) {
      const inputs = { ...tensors, POSITION: integer(this.#position) };
      const reply = await this.guard.infer("stream_step", inputs, outputs, all, this.#session);
      if (reply.PENDING[0] === 0) return reply; // else the server's turn was over: the same step again
    }
  }

  async #replaying(work) {
    for (let times = 1; ; times += 1) {
      try {
        if (this.#lost) {
          const shown = this.#position;
          await this.open();
          if (this.#written) await this.#write(this.#written, {});
          if (this.#position < shown) throw new GuardError("INTERNAL", "The replay ended before what was shown.");
          this.#lost = false;
        }
        return await work();
      } catch (error) {
        if (error.code !== "SESSION_LOST" || times === REPLAYS) throw error;
        this.#lost = true;
      }
    }
  }
}
