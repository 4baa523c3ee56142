import Foundation

/// JSON, strictly. Numbers stay as they are spelled, because a bundle's id is a hash over the text.
///
/// `at` names the place for messages: `manifest.json pipeline.steps`.
public struct Json {
    enum Value {
        case object([String: Json])
        case list([Json])
        case string(String)
        case number(String)
        case boolean(Bool)
        case null
    }

    let value: Value
    let at: String

    public init(_ data: Data, name: String) throws {
        var parser = Parser(bytes: [UInt8](data), name: name)
        self = try parser.document()
    }

    init(value: Value, at: String) {
        self.value = value
        self.at = at
    }

    public func get(_ key: String) throws -> Json {
        guard let found = try fields()[key] else {
            throw Problem.damaged("\(at) has no '\(key)'. Fetch the bundle again.")
        }
        return found
    }

    public func fields() throws -> [String: Json] {
        guard case .object(let fields) = value else { throw wrong("an object") }
        return fields
    }

    public func items() throws -> [Json] {
        guard case .list(let items) = value else { throw wrong("a list") }
        return items
    }

    public func string() throws -> String {
        guard case .string(let text) = value else { throw wrong("a text") }
        return text
    }

    public func boolean() throws -> Bool {
        guard case .boolean(let yes) = value else { throw wrong("true or false") }
        return yes
    }

    public func double() throws -> Double {
        guard case .number(let text) = value, let number = Double(text) else { throw wrong("a number") }
        return number
    }

    public func int() throws -> Int {
        guard case .number(let text) = value, let number = Int(text) else { throw wrong("a whole number") }
        return number
    }

    public var isNull: Bool {
        if case .null = value { return true }
        return false
    }

    /// The spelling that is hashed: sorted keys, no spaces.
    public func canonical() -> String {
        switch value {
        case .object(let fields):
            let sorted = fields.sorted { $0.key.unicodeScalars.lexicographicallyPrecedes($1.key.unicodeScalars) }
            return "{" + sorted.map { "\(Json.quote($0.key)):\($0.value.canonical())" }.joined(separator: ",") + "}"
        case .list(let items): return "[" + items.map { $0.canonical() }.joined(separator: ",") + "]"
        case .string(let text): return Json.quote(text)
        case .number(let text): return text
        case .boolean(let yes): return yes ? "true" : "false"
        case .null: return "null"
        }
    }

    public static func quote(_ text: String) -> String {
        let short: [Unicode.Scalar: String] = [
            "\"": "\\\"", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\u{8}": "\\b", "\u{c}": "\\f",
        ]
        var out = "\""
        for scalar in text.unicodeScalars {
            if let escape = short[scalar] {
                out += escape
            } else if scalar.value < 32 {
                out += "\\u00" + (scalar.value < 16 ? "0" : "") + String(scalar.value, radix: 16)
            } else {
                out.unicodeScalars.append(scalar)
            }
        }
        return out + "\""
    }

    private func wrong(_ wanted: String) -> Problem { .damaged("\(at) must be \(wanted). Fetch the bundle again.") }
}

/// Over UTF-8 bytes: quick, and every byte that has a meaning is ASCII.
private struct Parser {
    let bytes: [UInt8]
    let name: String
    var i = 0

    init(bytes: [UInt8], name: String) {
        self.bytes = bytes
        self.name = name
    }

    mutating func document() throws -> Json {
        let found = try value(at: name)
        skip()
        guard i == bytes.count else { throw damaged }
        return found
    }

    private mutating func value(at: String) throws -> Json {
        skip()
        let found: Json.Value
        switch try peek() {
        case UInt8(ascii: "{"): found = .object(try object(at))
        case UInt8(ascii: "["): found = .list(try list(at))
        case UInt8(ascii: "\""): found = .string(try string())
        case UInt8(ascii: "t"): found = try word("true", .boolean(true))
        case UInt8(ascii: "f"): found = try word("false", .boolean(false))
        case UInt8(ascii: "n"): found = try word("null", .null)
        default: found = .number(try number())
        }
        return Json(value: found, at: at)
    }

    private mutating func object(_ at: String) throws -> [String: Json] {
        var fields: [String: Json] = [:]
        i += 1
        skip()
        while try peek() != UInt8(ascii: "}") {
            skip()
            let key = try string()
            skip()
            try take(":")
            let before = fields.updateValue(try value(at: at == name ? "\(at) \(key)" : "\(at).\(key)"), forKey: key)
            guard before == nil else { throw damaged }
            skip()
            if try peek() != UInt8(ascii: "}") { try take(",") }
        }
        i += 1
        return fields
    }

    private mutating func list(_ at: String) throws -> [Json] {
        var items: [Json] = []
        i += 1
        skip()
        while try peek() != UInt8(ascii: "]") {
            items.append(try value(at: "\(at).\(items.count)"))
            skip()
            if try peek() != UInt8(ascii: "]") { try take(",") }
        }
        i += 1
        return items
    }

    private mutating func string() throws -> String {
        try take("\"")
        let start = i
        var plain = true
        while try peek() != UInt8(ascii: "\"") {
            guard bytes[i] >= 32 else { throw damaged }
            if bytes[i] == UInt8(ascii: "\\") { plain = false; i += 1 }
            i += 1
        }
        let raw = bytes[start..<i]
        i += 1
        if plain, let text = String(validatingUTF8: raw.map { CChar(bitPattern: $0) } + [0]) { return text }
        return try escaped(raw)
    }

    /// Escapes and surrogate pairs are left to Foundation.
    private func escaped(_ raw: ArraySlice<UInt8>) throws -> String {
        let quoted = Data([UInt8(ascii: "\"")]) + Data(raw) + Data([UInt8(ascii: "\"")])
        guard let text = try? JSONSerialization.jsonObject(with: quoted, options: .fragmentsAllowed) as? String else {
            throw damaged
        }
        return text
    }

    private mutating func number() throws -> String {
        let start = i
        while i < bytes.count, "+-.eE0123456789".utf8.contains(bytes[i]) { i += 1 }
        let text = String(decoding: bytes[start..<i], as: UTF8.self)
        guard Double(text) != nil, !text.hasPrefix("+"), !text.hasPrefix(".") else { throw damaged }
        return text
    }

    private mutating func word(_ word: String, _ means: Json.Value) throws -> Json.Value {
        guard bytes[i...].starts(with: word.utf8) else { throw damaged }
        i += word.utf8.count
        return means
    }

    private mutating func take(_ c: Unicode.Scalar) throws {
        guard try peek() == UInt8(ascii: c) else { throw damaged }
        i += 1
    }

    private func peek() throws -> UInt8 {
        guard i < bytes.count else { throw damaged }
        return bytes[i]
    }

    private mutating func skip() {
        while i < bytes.count, " \t\r\n".utf8.contains(bytes[i]) { i += 1 }
    }

    private var damaged: Problem { .damaged("\(name) is not valid at byte \(i). Fetch the bundle again.") }
}
