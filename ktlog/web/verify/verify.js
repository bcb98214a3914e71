// Checks what a key transparency log says, against keys that the reader pinned. No network, no clock, no storage:
// bytes in, a verdict or a Refusal out. The rules and their names are those of docs/protocol.md, section 9, and of the
// C2SP formats signed-note, tlog-checkpoint, tlog-cosignature, tlog-policy and tlog-proof.
//
// SHA-256, HMAC and Ed25519 come from WebCrypto; `mldsa44` is @noble/post-quantum's ML-DSA-44.
"use strict";
const KtlogVerify = (() => {
  class Refusal extends Error {
    // kind: the class of error, which has an exit code in `ktlog verify`; name: stable.
    constructor(kind, name, message) { super(message); this.kind = kind; this.name = name; }
  }
  const refuse = (kind, name, message) => { throw new Refusal(kind, name, message); };
  const EXIT_CODES = { Unreachable: 3, NotLogged: 4, Invalid: 5, PolicyUnmet: 6, Forked: 7, Stale: 9 };

  // -- bytes

  const MAX_INTEGER = (1n << 63n) - 1n;
  const CLOCK_SKEW_SECONDS = 300n;
  const encoder = new TextEncoder();
  const utf8 = (text) => encoder.encode(text);
  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);
  function join(...parts) {
    const out = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
    let at = 0;
    for (const part of parts) { out.set(part, at); at += part.length; }
    return out;
  }
  function text(bytes, fail) {
    try { return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes); } catch { return fail(); }
  }
  const ascii = (value) => /^[\x00-\x7f]*$/.test(value);
  function integer(value, size, littleEndian = false) {
    const out = new Uint8Array(size);
    let rest = BigInt(value);
    for (let i = 0; i < size; i++) { out[littleEndian ? i : size - 1 - i] = Number(rest & 255n); rest >>= 8n; }
    return out;
  }
  const u32 = (value) => integer(value, 4), u64 = (value) => integer(value, 8);
  const encodeBase64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  const encodeBase64url = (bytes) => encodeBase64(bytes).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  // null for anything that does not encode back to *value*, or has not *size* bytes.
  function decodeBase64(value, size) {
    if (!/^[A-Za-z0-9+/]*={0,2}$/.test(value)) return null;
    let raw;
    try { raw = atob(value); } catch { return null; }
    const bytes = Uint8Array.from(raw, (character) => character.charCodeAt(0));
    return encodeBase64(bytes) !== value || (size !== undefined && bytes.length !== size) ? null : bytes;
  }
  // null unless it is a decimal without sign and leading zero, at most 2^63 - 1.
  function decimal(value) {
    if (!/^(0|[1-9][0-9]{0,18})$/.test(value)) return null;
    const number = BigInt(value);
    return number > MAX_INTEGER ? null : number;
  }
  const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest("SHA-256", join(...parts)));
  async function hmac(key, data) {
    const made = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    return new Uint8Array(await crypto.subtle.sign("HMAC", made, data));
  }
  // PKD's PreAuthEncode.
  const pae = (...pieces) => join(
    integer(pieces.length, 8, true), ...pieces.flatMap((piece) => [integer(piece.length, 8, true), piece]),
  );

  class Reader {
    constructor(bytes, kind, name) { this.bytes = bytes; this.at = 0; this.kind = kind; this.name = name; }
    refuse(message) { return refuse(this.kind, this.name, message); }
    get left() { return this.bytes.length - this.at; }
    take(size) {
      if (size > this.left) this.refuse("it is cut short");
      this.at += size;
      return this.bytes.subarray(this.at - size, this.at);
    }
    big(size) { return this.take(size).reduce((value, byte) => (value << 8n) | BigInt(byte), 0n); }
    u8() { return this.take(1)[0]; }
    u16() { return Number(this.big(2)); }
    u32() { return Number(this.big(4)); }
    u64() {
      const value = this.big(8);
      return value > MAX_INTEGER ? this.refuse("a number is out of range") : value;
    }
    s8() { return this.take(this.u8()); }
    s16() { return this.take(this.u16()); }
    s32() { return this.take(this.u32()); }
    end() { if (this.left) this.refuse("bytes are left over"); }
  }

  // -- keys and notes (c2sp.org/signed-note)

  const ED25519 = 1, COSIGNATURE_ED25519 = 4, MLDSA44 = 6;
  const KEY_BYTES = { 1: 32, 4: 32, 6: 1312 }, SIGNATURE_BYTES = { 1: 64, 4: 64, 6: 2420 };
  // Points of small order, by their y: with one of them for a key, a signature can hold for any message.
  const SMALL_ORDER = new Set([
    "00".repeat(32), "01" + "00".repeat(31), "ec" + "ff".repeat(30) + "7f", "ed" + "ff".repeat(30) + "7f", "ee" + "ff".repeat(30) + "7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
  ]);
  function smallOrder(key) {
    const y = key.slice();
    y[31] &= 127;
    return SMALL_ORDER.has(hex(y));
  }
  const badKeyName = (name) => name === "" || /[\p{White_Space}+\x00-\x1f]/u.test(name);

  async function parseVkey(value) {
    const bad = (message) => refuse("Invalid", "BadVkey", message);
    const first = value.indexOf("+"), second = value.indexOf("+", first + 1);
    if (first < 0 || second < 0) bad("a verifier key has three parts, joined by plus signs");
    const name = value.slice(0, first), material = decodeBase64(value.slice(second + 1));
    if (badKeyName(name) || utf8(name).length > 255) bad("the key's name is not one");
    if (material === null || material.length === 0) bad("the public key is not base64");
    const algorithm = material[0], publicKey = material.slice(1);
    if (KEY_BYTES[algorithm] === undefined) bad(`the signature type ${algorithm} is not known`);
    if (publicKey.length !== KEY_BYTES[algorithm]) bad("the public key has another length than its type's");
    if (algorithm !== MLDSA44 && smallOrder(publicKey)) bad("the Ed25519 key is not one: it has a small order");
    const keyId = hex((await sha256(utf8(name + "\n"), material)).slice(0, 4));
    if (value.slice(first + 1, second) !== keyId) bad("the key id is not that of the name and the public key");
    return { name, algorithm, publicKey, keyId, text: value, public: hex(publicKey) };
  }

  const NOTE_BYTES = 1 << 20, SIGNATURES = 100, DASH = "— ";
  function parseNote(bytes, fail) {
    if (bytes.length > NOTE_BYTES || bytes[bytes.length - 1] !== 10) fail("it is too long, or its last line has no end");
    if (bytes.some((byte) => byte < 32 && byte !== 10)) fail("it holds a control character");
    const whole = text(bytes, () => fail("it is not UTF-8"));
    const split = whole.lastIndexOf("\n\n");
    if (split < 0) fail("it has no empty line before its signatures");
    const lines = whole.slice(split + 2).split("\n").slice(0, -1), seen = new Set();
    if (lines.length > SIGNATURES) fail(`it has more than ${SIGNATURES} signatures`);
    const signatures = lines.map((line) => {
      const space = line.indexOf(" ", DASH.length);
      const name = line.slice(DASH.length, space), blob = decodeBase64(line.slice(space + 1));
      if (!line.startsWith(DASH) || space < 0 || badKeyName(name) || blob === null || blob.length <= 4) fail("a signature line is malformed");
      const keyId = hex(blob.slice(0, 4));
      if (seen.has(`${name}+${keyId}`)) fail("two signature lines bear one key name and key id");
      seen.add(`${name}+${keyId}`);
      return { name, keyId, blob: blob.slice(4) };
    });
    return { text: utf8(whole.slice(0, split + 1)), signatures };
  }

  function parseCheckpoint(bytes, fail) {
    const lines = text(bytes, () => fail("it is not UTF-8")).split("\n").slice(0, -1);
    if (lines.length < 3 || lines.some((line) => line === "")) fail("it has too few lines, or an empty one");
    if (utf8(lines[0]).length > 255) fail("its origin is too long");
    const size = decimal(lines[1]), root = decodeBase64(lines[2], 32);
    if (size === null) fail("its tree size is not a number");
    if (root === null) fail("its root is not 32 bytes in base64");
    return { origin: lines[0], size, root };
  }

  function subtreeMessage(name, time, checkpoint) {
    const named = utf8(name), origin = utf8(checkpoint.origin);
    return join(
      utf8("subtree/v1\n\0"), integer(named.length, 1), named, u64(time), integer(origin.length, 1), origin, u64(0), u64(checkpoint.size),
      checkpoint.root,
    );
  }

  async function verifyEd25519(key, signature, message) {
    const loaded = await crypto.subtle.importKey("raw", key, { name: "Ed25519" }, false, ["verify"]);
    return crypto.subtle.verify("Ed25519", loaded, signature, message);
  }

  // The time of a line in Unix seconds, 0 for a log's Ed25519 line; null when the line is wrong.
  async function verifyLine(vkey, noteText, line, checkpoint) {
    if (vkey.algorithm === ED25519) {
      return line.blob.length === 64 && await verifyEd25519(vkey.publicKey, line.blob, noteText) ? 0n : null;
    }
    if (line.blob.length !== 8 + SIGNATURE_BYTES[vkey.algorithm]) return null;
    const time = line.blob.slice(0, 8).reduce((value, byte) => (value << 8n) | BigInt(byte), 0n), signature = line.blob.slice(8);
    if (time > MAX_INTEGER) return null;
    if (vkey.algorithm === MLDSA44) {
      let holds = false;
      try { holds = mldsa44.verify(signature, subtreeMessage(vkey.name, time, checkpoint), vkey.publicKey); } catch { /* malformed */ }
      return holds ? time : null;
    }
    const message = join(utf8(`cosignature/v1\ntime ${time}\n`), noteText);
    return await verifyEd25519(vkey.publicKey, signature, message) ? time : null;
  }

  async function openNote(note, vkeys, checkpoint, name) {
    const found = [];
    for (const line of note.signatures) {
      const vkey = vkeys.find((one) => one.name === line.name && one.keyId === line.keyId);
      if (vkey === undefined) continue;
      const time = await verifyLine(vkey, note.text, line, checkpoint);
      if (time === null) refuse("Invalid", name, `the signature of ${vkey.name} does not verify`);
      found.push({ vkey, time });
    }
    return found;
  }

  // -- policies (c2sp.org/tlog-policy)

  async function parsePolicy(source) {
    const bad = (message) => refuse("Invalid", "BadPolicy", message);
    if (source !== "" && !source.endsWith("\n")) bad("the last line has no end");
    if (/[\x00-\x08\x0b-\x1f\x7f]/.test(source)) bad("a control character");
    const policy = { logs: [], witnesses: new Map(), groups: new Map(), quorum: null, text: source };
    const defined = (name) => policy.witnesses.has(name) || policy.groups.has(name);
    const used = new Set();
    for (const [number, line] of source.split("\n").slice(0, -1).entries()) {
      const items = line.split(/[ \t]+/).filter((item) => item !== "");
      const here = (message) => bad(`line ${number + 1}: ${message}`);
      if (items.length === 0 || items[0].startsWith("#")) continue;
      const [keyword, ...rest] = items;
      const key = async (value) => { try { return await parseVkey(value); } catch (error) { return here(error.message); } };
      const define = (name) => { if (defined(name) || name === "none") here(`${name} is defined twice, or reserved`); };
      if (keyword === "log" && rest.length >= 1 && rest.length <= 2) {
        const vkey = await key(rest[0]);
        if (vkey.algorithm === COSIGNATURE_ED25519) here("that is not a log's key");
        policy.logs.push({ vkey, url: rest[1] });
      } else if (keyword === "witness" && rest.length >= 2 && rest.length <= 3) {
        define(rest[0]);
        const vkey = await key(rest[1]);
        if (vkey.algorithm === ED25519) here("that is not a cosigner's key");
        policy.witnesses.set(rest[0], vkey);
      } else if (keyword === "group" && rest.length >= 3) {
        const [name, threshold, ...members] = rest;
        const need = threshold === "all" ? BigInt(members.length) : threshold === "any" ? 1n : decimal(threshold);
        for (const member of members) {
          if (!defined(member) || used.has(member)) here(`${member} is not defined above, or a member twice`);
          used.add(member);
        }
        define(name);
        if (need === null || need < 1n || need > BigInt(members.length)) here("no such threshold");
        policy.groups.set(name, { threshold: Number(need), members });
      } else if (keyword === "quorum" && rest.length === 1) {
        if (policy.quorum !== null || !(rest[0] === "none" || defined(rest[0]))) here("a second quorum, or one that is not defined above");
        policy.quorum = rest[0];
      } else {
        here("not a log, witness, group or quorum line");
      }
    }
    if (policy.quorum === null) bad("there is no quorum line");
    const twice = (keys) => new Set(keys).size !== keys.length;
    if (twice(policy.logs.map((log) => log.vkey.public)) || twice([...policy.witnesses.values()].map((vkey) => vkey.public))) bad("one public key is there twice");
    if (twice([...policy.witnesses.values()].map((vkey) => `${vkey.name}+${vkey.keyId}`))) bad("two keys share a name and key id");
    return policy;
  }

  function evaluate(policy, vkeys) {
    const holds = new Map([...policy.witnesses].map(([name, vkey]) => [name, vkeys.has(vkey)]));
    for (const [name, group] of policy.groups) holds.set(name, group.members.filter((member) => holds.get(member)).length >= group.threshold);
    return holds;
  }
  const satisfied = (policy, vkeys) => policy.quorum === "none" || evaluate(policy, vkeys).get(policy.quorum);

  const logNames = (policy) => new Set(policy.logs.flatMap(({ vkey }) => {
    const log = vkey.name.endsWith("/map") ? vkey.name.slice(0, -4) : vkey.name;
    return [log, `${log}/map`];
  }));
  // The cosigners, without those that are really a log's.
  function cosigners(policy) {
    const keys = new Set(policy.logs.map(({ vkey }) => vkey.public)), names = logNames(policy);
    return [...policy.witnesses.values()].filter((vkey) => !keys.has(vkey.public) && !names.has(vkey.name));
  }

  function canDeal(weights, need) {
    if (need <= 0) return true;
    let reachable = 1n, total = 0;
    for (const weight of weights) { reachable |= reachable << BigInt(weight); total += weight; }
    for (let side = need; side <= total - need; side++) if ((reachable >> BigInt(side)) & 1n) return true;
    return false;
  }
  // Whether two sets of cosigners with none in common can each make the quorum.
  function splittable(policy) {
    const splits = new Map([...policy.witnesses.keys()].map((name) => [name, false]));
    for (const [name, group] of policy.groups) {
      const weights = new Map();
      for (const member of group.members.filter((one) => !splits.get(one))) {
        const cosigner = policy.witnesses.has(member) ? `key ${policy.witnesses.get(member).name}` : `group ${member}`;
        weights.set(cosigner, (weights.get(cosigner) ?? 0) + 1);
      }
      splits.set(name, canDeal([...weights.values()], group.threshold - group.members.filter((one) => splits.get(one)).length));
    }
    return policy.quorum === "none" || splits.get(policy.quorum);
  }

  function members(policy, role) {
    if (!policy.groups.has(role)) refuse("PolicyUnmet", "UnsafePolicy", `there is no group ${role}`);
    const names = [role], found = new Set();
    while (names.length) {
      const name = names.pop();
      if (policy.groups.has(name)) names.push(...policy.groups.get(name).members); else found.add(policy.witnesses.get(name));
    }
    return found;
  }

  function checkSafe(policy, needVerifiers) {
    const unsafe = (message) => refuse("PolicyUnmet", "UnsafePolicy", message);
    if (policy.quorum === "none") unsafe("the quorum is none");
    if (cosigners(policy).length !== policy.witnesses.size) unsafe("a cosigner has the key or the name of a log");
    if (splittable(policy)) unsafe("two sets of cosigners with none in common could each make the quorum");
    if (!needVerifiers) return;
    const roles = ["witnesses", "verifiers"].map((role) => [role, members(policy, role)]);
    const names = roles.map(([, vkeys]) => new Set([...vkeys].map((vkey) => vkey.name)));
    if ([...names[0]].some((name) => names[1].has(name))) unsafe("a cosigner is both witness and verifier");
    for (const [role, vkeys] of roles) {
      const others = new Set([...policy.witnesses.values()].filter((vkey) => !vkeys.has(vkey)));
      if (satisfied(policy, others)) unsafe(`the quorum can be made without any of the ${role}`);
    }
  }

  // -- checkpoints

  // {note, checkpoint, log, cosigned, asOf, policy}: a log's key signed it, and the quorum cosigned it. Throws what is wrong.
  async function openCheckpoint(policy, bytes, now) {
    const malformed = (message) => refuse("Invalid", "MalformedCheckpoint", message);
    const note = parseNote(bytes, malformed), checkpoint = parseCheckpoint(note.text, malformed);
    checkSafe(policy, checkpoint.origin.endsWith("/map"));
    const keys = policy.logs.map(({ vkey }) => vkey).filter((vkey) => vkey.name === checkpoint.origin);
    if (keys.length === 0) refuse("Invalid", "WrongLog", `you pinned no key of a log called ${checkpoint.origin}`);
    const log = await openNote(note, keys, checkpoint, "BadLogSignature");
    if (log.length === 0) refuse("Invalid", "BadLogSignature", `no key of ${checkpoint.origin} that you pinned signed this`);
    const cosigned = await openNote(note, cosigners(policy), checkpoint, "BadCosignature");
    return { note, checkpoint, log, cosigned, asOf: count(policy, cosigned, now), bytes };
  }

  // As of when the quorum stands behind a checkpoint.
  function count(policy, cosigned, now) {
    const usable = cosigned.filter(({ time }) => time <= BigInt(now) + CLOCK_SKEW_SECONDS);
    const since = (least) => new Set(usable.filter(({ time }) => time >= least).map(({ vkey }) => vkey));
    const all = since(0n);
    if (!satisfied(policy, all)) {
      const holds = evaluate(policy, all), verifiers = holds.get("verifiers") === false && holds.get("witnesses") === true;
      const name = verifiers ? "verifiers" : policy.quorum, group = policy.groups.get(name);
      const have = group === undefined ? 0 : group.members.filter((member) => holds.get(member)).length;
      refuse("PolicyUnmet", verifiers ? "TooFewVerifiers" : "TooFewWitnesses", `${have} of the ${group?.threshold ?? 1} needed by ${name} cosigned`);
    }
    const times = [...new Set(usable.map(({ time }) => time))].sort((a, b) => (a < b ? 1 : -1));
    return times.find((time) => satisfied(policy, since(time)));
  }

  function checkFresh(opened, now, maxAge) {
    const age = BigInt(now) - opened.asOf;
    if (age > BigInt(maxAge)) refuse("Stale", "OldCosignatures", `the quorum saw this ${age} seconds ago; at most ${maxAge} are allowed`);
  }

  // What a checkpoint that was believed before says about one now. "same", "older" trees, or "newer", which needs a proof.
  function compare(before, after) {
    if (before.origin !== after.origin) return "unrelated";
    if (before.size === after.size) {
      if (!equal(before.root, after.root)) refuse("Forked", "TwoRoots", `two roots for the same ${after.size} entries: the log signed two histories`);
      return "same";
    }
    if (before.size > after.size) refuse("Stale", "RolledBack", `you were shown ${before.size} entries before, and ${after.size} now`);
    return "newer";
  }

  // -- trees (RFC 9162)

  const hashLeaf = (entry) => sha256(Uint8Array.of(0), entry), hashNode = (left, right) => sha256(Uint8Array.of(1), left, right);

  async function inclusionRoot(leafHash, index, size, proof) {
    if (index >= size) return null;
    let node = index, last = size - 1n, hash = leafHash;
    for (const other of proof) {
      if (last === 0n) return null;
      if (node & 1n || node === last) {
        hash = await hashNode(other, hash);
        while (!(node & 1n) && node !== 0n) { node >>= 1n; last >>= 1n; }
      } else {
        hash = await hashNode(hash, other);
      }
      node >>= 1n;
      last >>= 1n;
    }
    return last === 0n ? hash : null;
  }

  // The two roots that a proof leads to, [old, new]; null for one that cannot be.
  async function consistencyRoots(oldSize, size, oldRoot, proof) {
    if (oldSize <= 0n || oldSize >= size || proof.length === 0) return null;
    const hashes = (oldSize & (oldSize - 1n)) === 0n ? [oldRoot, ...proof] : proof;
    let node = oldSize - 1n, last = size - 1n;
    while (node & 1n) { node >>= 1n; last >>= 1n; }
    let old = hashes[0], now = hashes[0];
    for (const other of hashes.slice(1)) {
      if (last === 0n) return null;
      if (node & 1n || node === last) {
        old = await hashNode(other, old);
        now = await hashNode(other, now);
        while (!(node & 1n) && node !== 0n) { node >>= 1n; last >>= 1n; }
      } else {
        now = await hashNode(now, other);
      }
      node >>= 1n;
      last >>= 1n;
    }
    return last === 0n ? [old, now] : null;
  }

  async function checkConsistent(before, after, proof) {
    const roots = await consistencyRoots(before.size, after.size, before.root, proof);
    if (roots === null || !equal(roots[1], after.root)) refuse("Invalid", "BadConsistencyProof", "the proof does not lead to the newer root");
    if (!equal(roots[0], before.root)) refuse("Forked", "Inconsistent", "the newer tree does not begin with the older one: the log rewrote its history");
  }

  // -- proofs of logging (c2sp.org/tlog-proof)

  function parseProof(bytes) {
    const bad = (message) => refuse("Invalid", "BadTlogProof", message);
    const whole = text(bytes, () => bad("it is not UTF-8")), split = whole.indexOf("\n\n");
    if (split < 0) bad("it has no empty line");
    const lines = whole.slice(0, split).split("\n");
    if (lines.shift() !== "c2sp.org/tlog-proof@v1") bad("its first line is not c2sp.org/tlog-proof@v1");
    if (lines[0]?.startsWith("extra ")) {
      const extra = decodeBase64(lines.shift().slice(6));
      if (extra === null || extra.length === 0) bad("its extra line is malformed");
    }
    const index = lines[0]?.startsWith("index ") ? decimal(lines.shift().slice(6)) : null;
    if (index === null) bad("it has no index");
    const hashes = lines.map((line) => decodeBase64(line, 32));
    if (hashes.length > 63 || hashes.includes(null)) bad("a hash is not 32 bytes in base64");
    return { index, hashes, checkpoint: utf8(whole.slice(split + 2)) };
  }

  async function checkProof(policy, bytes, entry, now) {
    const proof = parseProof(bytes), opened = await openCheckpoint(policy, proof.checkpoint, now);
    const root = await inclusionRoot(await hashLeaf(entry), proof.index, opened.checkpoint.size, proof.hashes);
    if (root === null || !equal(root, opened.checkpoint.root)) refuse("Invalid", "BadInclusionProof", "the entry is not in the tree at that place");
    return { ...opened, index: proof.index };
  }

  // -- lookup bundles (docs/protocol.md)

  const BUNDLE_BYTES = 64 << 20, HELD = 65535, HISTORY = 65536, ATTRIBUTES = 16, PENDING = 16, PENDING_BYTES = 128 << 10;
  const HOST = /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$/;
  const TARGET = /^\/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?$/;

  // Whether *value* is an actor id in the one form in which the log compares them, byte for byte.
  function isActorId(value) {
    const parts = /^https:\/\/([^/?#:]*)(?::443)?(\/.*)$/s.exec(value);
    if (parts === null || value.length > 2048 || parts[1].length > 253 || !HOST.test(parts[1]) || !TARGET.test(parts[2])) return false;
    const path = parts[2].split("?")[0].toLowerCase().replaceAll("%2e", ".");
    return !path.split("/").some((segment) => segment === "." || segment === "..");
  }

  function chunks(bytes, size, most, fail) {
    if (bytes.length % size || bytes.length / size > most) fail(`${bytes.length} bytes are not up to ${most} pieces of ${size}`);
    return Array.from({ length: bytes.length / size }, (_, i) => bytes.slice(i * size, (i + 1) * size));
  }

  function parseBundle(bytes) {
    const fail = (message) => refuse("Invalid", "MalformedBundle", message);
    const header = utf8("ktlog-bundle/v1\n");
    if (bytes.length > BUNDLE_BYTES || !equal(bytes.slice(0, header.length), header)) fail("this is no lookup bundle");
    const reader = (part) => new Reader(part, "Invalid", "MalformedBundle");
    const read = reader(bytes.slice(header.length)), found = new Map();
    for (let last = 0; read.left;) {
      const kind = read.u8();
      if (kind <= last || kind > 13) read.refuse(`a section of type ${kind} is there, which is unknown, or out of order`);
      found.set(kind, read.s32());
      last = kind;
    }
    for (let kind = 1; kind <= 7; kind++) if (!found.has(kind)) fail(`section ${kind} is missing`);
    if (found.has(10) !== found.has(11)) fail("sections 10 and 11 come together");
    if (found.has(13)) fail("it is one page of an answer, and not the answer");
    const size = reader(found.get(2)), origin = text(found.get(1), () => fail("the origin is not ASCII"));
    if (!ascii(origin)) fail("the origin is not ASCII");
    const bundle = {
      origin, size: size.u64(), leaf: found.get(3), path: chunks(found.get(4), 32, 64, fail), proof: parsePrefixProof(found.get(5), fail),
      outcome: parseOutcome(reader(found.get(6))), keys: chunks(found.get(7), 1312, HELD, fail),
      aux: found.has(8) ? parseTexts(reader(found.get(8))) : null, checkpoint: found.get(9) ?? null,
      history: found.has(10) ? parseItems(reader(found.get(10))) : null, pending: found.has(12),
    };
    size.end();
    if (found.has(11)) {
      const lists = reader(found.get(11));
      while (lists.left) for (let count = lists.u32(); count > 0; count--) parseItem(lists);
    }
    if (found.has(12)) parsePending(reader(found.get(12)));
    return bundle;
  }

  // What was logged is only read through here: what it says is checked by `ktlog lookup --full`.
  function passLogged(read) {
    read.s32();
    read.s32();
    const count = read.u16();
    if (count > ATTRIBUTES) read.refuse("a message has too many attributes");
    for (let i = 0, last = ""; i < count; i++) {
      const name = text(read.s32(), () => read.refuse("an attribute is not ASCII"));
      if (!ascii(name) || name <= last) read.refuse("attributes are not in order");
      last = name;
      passText(read);
    }
  }
  function passText(read) {
    const there = read.u8();
    if (there > 1) read.refuse("a text is neither there nor withheld");
    return there ? text(read.s32(), () => read.refuse("a text is not UTF-8")) : null;
  }
  // The history leaf of one item.
  function parseItem(read) {
    const leaf = read.s32();
    passLogged(read);
    const count = read.u16();
    if (count > 64) read.refuse("an inclusion proof is too long");
    read.take(32 * count);
    return leaf;
  }
  function parseItems(read) {
    const leaves = [];
    while (read.left) {
      if (leaves.length === HISTORY) read.refuse("too many entries");
      leaves.push(parseItem(read));
    }
    return leaves;
  }
  function parsePending(read) {
    if (read.left === 0 || read.left > PENDING_BYTES) read.refuse("pending entries are none, or too long");
    for (let count = 0, last = -1n; read.left; count++) {
      const leafIndex = read.u64();
      if (count === PENDING || leafIndex <= last) read.refuse("pending entries are too many, or not in the order of the log");
      last = leafIndex;
      passLogged(read);
    }
  }

  function parseOutcome(read) {
    const kind = read.u8();
    let outcome;
    if (kind === 0) outcome = { kind };
    else if (kind === 1) outcome = { kind, value: read.s32(), opening: read.take(16) };
    else if (kind === 2) outcome = { kind, version: read.u32(), generation: read.u32(), number: read.u64() };
    else read.refuse(`unknown outcome ${kind}`);
    read.end();
    return outcome;
  }

  function parseTexts(read) {
    const out = [];
    while (read.left) {
      if (out.length === HELD) read.refuse("there are too many texts");
      out.push(passText(read));
    }
    return out;
  }

  const INCLUSION = 1, OTHER_LEAF = 2, NOTHING = 3;
  function parsePrefixProof(bytes, fail) {
    const read = new Reader(bytes, "Invalid", "MalformedBundle"), result = read.s8(), hashes = read.s16();
    read.end();
    const kind = result[0];
    if (result.length !== { 1: 2, 2: 66, 3: 2 }[kind]) fail("the map's proof is malformed");
    const other = kind === OTHER_LEAF ? { index: result.slice(1, 33), commitment: result.slice(33, 65) } : null;
    return { kind, other, depth: result[result.length - 1], hashes: chunks(hashes, 32, 65535, fail) };
  }

  const bit = (index, depth) => (index[depth >> 3] >> (7 - (depth & 7))) & 1;
  const prefixLeaf = (index, commitment) => sha256(Uint8Array.of(2), index, commitment);

  // Check that the search for *index* ends at a leaf with *commitment*, or, if null, at no leaf of its own.
  async function search(proof, index, commitment, root) {
    const bad = (message) => refuse("Invalid", commitment === null ? "BadMapProof" : "CommitmentMismatch", message);
    if ((proof.kind === INCLUSION) !== (commitment !== null)) refuse("Invalid", "OutcomeMismatch", "the map's proof shows another kind of answer than the one given");
    if (proof.other !== null) {
      if (equal(proof.other.index, index)) bad("absence is shown by the very leaf that was asked for");
      for (let depth = 0; depth < proof.depth; depth++) if (bit(proof.other.index, depth) !== bit(index, depth)) bad("the other leaf does not lie where the search went");
    }
    if (proof.hashes.length !== proof.depth) bad("it holds more or fewer hashes than the search needs");
    let hash = new Uint8Array(32);
    if (proof.kind === INCLUSION) hash = await prefixLeaf(index, commitment);
    if (proof.kind === OTHER_LEAF) hash = await prefixLeaf(proof.other.index, proof.other.commitment);
    // Left neighbours come from the root down, right ones from the bottom up.
    let left = 0, right = proof.hashes.length - 1;
    const beside = Array.from({ length: proof.depth }, (_, depth) => (bit(index, depth) ? proof.hashes[left++] : proof.hashes[right--]));
    for (let depth = proof.depth - 1; depth >= 0; depth--) {
      hash = bit(index, depth) ? await sha256(Uint8Array.of(3), beside[depth], hash) : await sha256(Uint8Array.of(3), hash, beside[depth]);
    }
    if (!equal(hash, root)) bad(commitment === null ? "the proof does not lead to the map's root" : "the answer is not what the map committed to");
  }

  function parseLeaf(bytes) {
    const bad = (message) => refuse("Invalid", "BadOutputLeaf", message);
    const whole = text(bytes, () => bad("it is not ASCII"));
    const shape = /^ktlog-map\/v1\nconfig (\S+)\ntime (\S+)\ninput (\S+) (\S+)\nerasures (\S+) (\S+)\nmap (\S+)\n$/;
    const parts = ascii(whole) ? shape.exec(whole) : null;
    if (parts === null) bad("it is not the six lines of ktlog-map/v1");
    const number = (value) => decimal(value) ?? bad("a number is malformed"), hash = (value) => decodeBase64(value, 32) ?? bad("a hash is malformed");
    return {
      config: hash(parts[1]), time: number(parts[2]), inputSize: number(parts[3]), inputRoot: hash(parts[4]), erasures: number(parts[5]),
      erasuresRoot: hash(parts[6]), mapRoot: hash(parts[7]),
    };
  }

  function parseValue(bytes) {
    const read = new Reader(bytes, "Invalid", "BadValue");
    if (read.u8() !== 1) read.refuse("the value has an unknown version");
    const actor = text(read.s16(), () => read.refuse("the actor id is not ASCII"));
    const value = {
      actor, version: read.u32(), generation: read.u32(), erasures: read.u32(), cause: read.u8(), generationLeaf: read.u64(), status: read.u8(),
      statusLeaf: read.u64(), fireproof: read.u8(),
    };
    value.keys = Array.from({ length: read.u16() }, () => {
      const leafIndex = read.u64();
      if (read.u8() !== 1) read.refuse("a key has an unknown algorithm");
      return { leafIndex, hash: read.take(32) };
    });
    value.aux = Array.from({ length: read.u16() }, () => {
      const leafIndex = read.u64(), type = text(read.s8(), () => read.refuse("a type is not ASCII"));
      if (!ascii(type) || type === "") read.refuse("a type of auxiliary data is not ASCII");
      return { leafIndex, type, id: read.take(32) };
    });
    value.historySize = read.u64();
    value.historyRoot = read.take(32);
    read.end();
    const rising = (items) => items.every((item, i) => i === 0 || items[i - 1].leafIndex < item.leafIndex);
    const distinct = (items) => new Set(items.map(hex)).size === items.length;
    const EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const active = value.status === 1, keys = value.keys.length > 0;
    const rules = [
      isActorId(actor), value.fireproof <= 1, rising(value.keys),
      distinct(value.keys.map((key) => key.hash)), rising(value.aux), distinct(value.aux.map((aux) => aux.id)), value.status >= 1 && value.status <= 4,
      value.cause >= 1 && value.cause <= 6, active === keys, keys || value.aux.length === 0, value.generationLeaf <= value.statusLeaf,
      !active || value.statusLeaf === value.generationLeaf, value.generation >= 1 && value.generation <= value.version, value.historySize >= 1n,
      hex(value.historyRoot) !== EMPTY, value.historySize <= BigInt(value.version),
    ];
    if (!rules.every(Boolean)) read.refuse("the value breaks a rule of the map");
    return value;
  }

  // What *bundle* proves about *actorId* under an output checkpoint that openCheckpoint accepted.
  // config: the text of the log's leaf 0, or null where it is not known.
  async function checkBundle(bundle, opened, actorId, { now, maxAge, config = null }) {
    const { checkpoint, asOf } = opened;
    if (!isActorId(actorId)) refuse("Invalid", "BadActorId", "that is no actor id: it looks like https://example.social/users/alice, and not like a handle");
    if (bundle.origin !== checkpoint.origin || !checkpoint.origin.endsWith("/map")) refuse("Invalid", "WrongLog", "bundle and checkpoint are not of one map");
    if (bundle.size !== checkpoint.size) refuse("Stale", "BundleBehindCheckpoint", `the bundle goes with checkpoint ${bundle.size}, not with ${checkpoint.size}`);
    if (bundle.size < 2n) refuse("Invalid", "NotNewestLeaf", "the log has no map yet");
    const root = await inclusionRoot(await hashLeaf(bundle.leaf), bundle.size - 1n, bundle.size, bundle.path);
    if (root === null || !equal(root, checkpoint.root)) refuse("Invalid", "BadOutputProof", "the map's leaf is not the newest");
    const leaf = parseLeaf(bundle.leaf), age = BigInt(now) - leaf.time;
    if (config !== null && !equal(await sha256(utf8(config)), leaf.config)) refuse("Invalid", "WrongConfig", "the map follows another configuration than this log's");
    if (age > BigInt(maxAge)) refuse("Stale", "OldMap", `the map is ${age} seconds old; at most ${maxAge} are allowed`);
    if (leaf.time > asOf + CLOCK_SKEW_SECONDS) refuse("Invalid", "BadOutputLeaf", "the map claims to be newer than its cosignatures");
    const origin = utf8(checkpoint.origin.slice(0, -4));
    const index = await sha256(pae(utf8("ktlog/v1/index"), origin, utf8(actorId)));
    const { outcome } = bundle;
    const answer = { actorId, leaf, asOf, origin: checkpoint.origin.slice(0, -4), pending: bundle.pending };
    if (outcome.kind !== 1 && bundle.history !== null) refuse("Invalid", "HistoryMismatch", "a history is given of somebody who has none");
    if (outcome.kind === 0) {
      await search(bundle.proof, index, null, leaf.mapRoot);
      return { ...answer, outcome: "never-enrolled" };
    }
    if (outcome.kind === 2) {
      if (outcome.number >= leaf.erasures) refuse("Invalid", "CommitmentMismatch", `erasure ${outcome.number} of ${leaf.erasures} does not exist`);
      const tombstone = await sha256(pae(utf8("ktlog/v1/erased"), origin, index, u32(outcome.version), u32(outcome.generation), u64(outcome.number)));
      await search(bundle.proof, index, tombstone, leaf.mapRoot);
      return { ...answer, outcome: "erased", version: outcome.version, generation: outcome.generation, erasureNumber: outcome.number };
    }
    const value = parseValue(outcome.value);
    const committed = join(outcome.opening, integer(index.length, 1), index, u32(value.version), u32(outcome.value.length), outcome.value);
    await search(bundle.proof, index, await hmac(utf8("ktlog/v1/commitment"), committed), leaf.mapRoot);
    if (value.actor !== actorId) refuse("Invalid", "WrongActor", `the value is of ${value.actor}`);
    const named = [value.generationLeaf, value.statusLeaf, ...value.keys.map((key) => key.leafIndex), ...value.aux.map((aux) => aux.leafIndex)];
    if (named.some((place) => place >= leaf.inputSize)) refuse("Invalid", "BadValue", "the value names an entry that the map does not cover");
    if (bundle.keys.length !== value.keys.length) refuse("Invalid", "OmittedKey", `${bundle.keys.length} keys are given, ${value.keys.length} are listed`);
    await checkHistory(bundle.history, value);
    const keys = [];
    for (const [i, key] of bundle.keys.entries()) {
      const listed = value.keys[i], keyText = `mldsa44:${encodeBase64url(key)}`;
      if (!equal(await sha256(utf8(keyText)), listed.hash)) refuse("Invalid", "UnlistedKey", `the key given for entry ${listed.leafIndex} is not the one listed`);
      keys.push({ keyId: encodeBase64url(await sha256(pae(utf8("ktlog/v1/key-id"), origin, u64(listed.leafIndex)))), leafIndex: listed.leafIndex, hash: listed.hash, text: keyText });
    }
    return { ...answer, outcome: "present", version: value.version, generation: value.generation, status: value.status, cause: value.cause, fireproof: value.fireproof === 1, keys, aux: await auxOf(bundle, value) };
  }

  // That the leaves of a history that was given make up the one that the value commits to. Not what the messages say.
  async function checkHistory(leaves, value) {
    if (leaves === null) return;
    let level = await Promise.all(leaves.map((leaf) => hashLeaf(leaf)));
    if (BigInt(level.length) !== value.historySize) refuse("Invalid", "HistoryMismatch", "the history has another length than the value says");
    // In RFC 9162's tree each level pairs from the left, and what is left over goes up as it is.
    while (level.length > 1) {
      const pairs = Array.from({ length: level.length >> 1 }, (_, i) => hashNode(level[2 * i], level[2 * i + 1]));
      level = [...await Promise.all(pairs), ...(level.length % 2 ? [level[level.length - 1]] : [])];
    }
    if (!equal(level[0], value.historyRoot)) refuse("Invalid", "HistoryMismatch", "the history is not the one that the value commits to");
  }

  async function auxOf(bundle, value) {
    const texts = bundle.aux ?? value.aux.map(() => null);
    if (texts.length !== value.aux.length) refuse("Invalid", "WrongAuxData", `${texts.length} auxiliary data are given, ${value.aux.length} are listed`);
    for (const [i, listed] of value.aux.entries()) {
      if (texts[i] === null) continue;
      const made = await hmac(utf8("FediPKD1-Auxiliary-Data-IDKeyGen"), pae(utf8("aux_type"), utf8(listed.type), utf8("data"), utf8(texts[i])));
      if (!equal(made, listed.id)) refuse("Invalid", "WrongAuxData", `the auxiliary data of entry ${listed.leafIndex} are not those listed`);
    }
    return value.aux.map((listed, i) => ({ type: listed.type, leafIndex: listed.leafIndex, text: texts[i] }));
  }

  return {
    Refusal, EXIT_CODES, parseVkey, parsePolicy, checkSafe, openCheckpoint, checkFresh, compare, checkConsistent, checkProof, parseProof, parseBundle,
    checkBundle, isActorId, parseCheckpoint, parseNote, encodeBase64, encodeBase64url, decodeBase64, hex, utf8, join, u32,
  };
})();
if (typeof module !== "undefined") module.exports = KtlogVerify;
