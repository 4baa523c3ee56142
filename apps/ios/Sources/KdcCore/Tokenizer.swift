import Foundation

/// `ids` (tokens), and how many tokens of the text did not fit.
public struct Encoded {
    public let ids: [Int]
    public let dropped: Int

    /// For the person who typed; nil if all of it fits.
    public var notice: String? {
        dropped == 0 ? nil : "The prompt is \(dropped) tokens too long; its end was left out."
    }
}

/// CLIP's byte-pair encoding over `vocab.json` and `merges.txt`: apps/reference.py, line by line.
public struct Tokenizer {
    static let start = "<|startoftext|>"
    static let end = "<|endoftext|>"
    private static let contractions = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
    private static let letters: [String] = {
        let printable = Set(33...126).union(161...172).union(174...255)
        var next: UInt32 = 256
        return (0..<256).map { byte in
            defer { if !printable.contains(byte) { next += 1 } }
            return String(Unicode.Scalar(printable.contains(byte) ? UInt32(byte) : next)!)
        }
    }()

    private struct Pair: Hashable {
        let first: String
        let second: String
    }

    private let vocab: [String: Int]
    private var ranks: [Pair: Int] = [:]
    private let tokens: Int
    private let startId: Int
    private let endId: Int

    public init(_ folder: URL, tokens: Int) throws {
        func read(_ name: String) throws -> Data {
            guard let data = try? Data(contentsOf: folder.appendingPathComponent(name)) else {
                throw Problem.damaged("tokenizer/\(name) is missing. Fetch the bundle again.")
            }
            return data
        }
        vocab = try Json(read("vocab.json"), name: "vocab.json").fields().mapValues { try $0.int() }
        for line in String(decoding: try read("merges.txt"), as: UTF8.self).unicodeScalars.split(separator: "\n") {
            let parts = line.split(separator: " ").map { String($0) }
            guard parts[0] != "#version:" else { continue }
            guard parts.count == 2 else { throw Problem.damaged("tokenizer/merges.txt is damaged. Fetch the bundle again.") }
            ranks[Pair(first: parts[0], second: parts[1])] = ranks.count
        }
        guard let start = vocab[Tokenizer.start], let end = vocab[Tokenizer.end] else {
            throw Problem.damaged("tokenizer/vocab.json is damaged. Fetch the bundle again.")
        }
        (startId, endId, self.tokens) = (start, end, tokens)
    }

    public func callAsFunction(_ text: String) -> Encoded {
        let ids = encode(Array(text.unicodeScalars))
        let kept = [startId] + ids.prefix(tokens - 2) + [endId]
        let padded = kept + Array(repeating: endId, count: tokens - kept.count)
        return Encoded(ids: padded, dropped: max(0, ids.count - tokens + 2))
    }

    private func encode(_ text: [Unicode.Scalar]) -> [Int] {
        var ids: [Int] = []
        var from = 0
        var i = 0
        func flush(_ to: Int) {
            for word in Tokenizer.words(text[from..<to]) { ids += merge(word).map { vocab[$0] ?? endId } }
        }
        while i < text.count {
            if let name = [Tokenizer.start, Tokenizer.end].first(where: { text[i...].starts(with: $0.unicodeScalars) }) {
                flush(i)
                ids.append(name == Tokenizer.start ? startId : endId)
                i += name.unicodeScalars.count
                from = i
            } else {
                i += 1
            }
        }
        flush(text.count)
        return ids
    }

    private func merge(_ word: String) -> [String] {
        var pieces = word.utf8.map { Tokenizer.letters[Int($0)] }
        pieces[pieces.count - 1] += "</w>"
        while pieces.count > 1 {
            let ranked = (0..<pieces.count - 1).map { ranks[Pair(first: pieces[$0], second: pieces[$0 + 1])] ?? Int.max }
            let best = ranked.indices.min { ranked[$0] < ranked[$1] }!
            if ranked[best] == Int.max { break }
            pieces[best] += pieces.remove(at: best + 1)
        }
        return pieces
    }

    /// NFC; lower case of each character by itself; contractions, runs of letters, single digits, runs of the rest.
    private static func words(_ text: ArraySlice<Unicode.Scalar>) -> [String] {
        let composed = string(text).precomposedStringWithCanonicalMapping
        let points = composed.unicodeScalars.flatMap { Array($0.properties.lowercaseMapping.unicodeScalars) }
        var found: [String] = []
        var i = 0
        while i < points.count {
            let rest = points[i...]
            let special = [start, end].first { rest.starts(with: $0.unicodeScalars) }
            let short = contractions.first { rest.starts(with: $0.unicodeScalars) }
            var last = i + (special ?? short ?? " ").unicodeScalars.count
            let kind = kind(points[i])
            if let special {
                found += ["<|", String(special.dropFirst(2).dropLast(2)), "|>"]
            } else if kind != .space {
                while short == nil, kind != .number, last < points.count, self.kind(points[last]) == kind { last += 1 }
                found.append(string(points[i..<last]))
            }
            i = last
        }
        return found
    }

    private static func string(_ scalars: ArraySlice<Unicode.Scalar>) -> String {
        var text = String.UnicodeScalarView()
        text.append(contentsOf: scalars)
        return String(text)
    }

    private enum Kind {
        case space, letter, number, other
    }

    private static func kind(_ scalar: Unicode.Scalar) -> Kind {
        if scalar.properties.isWhitespace { return .space }
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: return .letter
        case .decimalNumber, .letterNumber, .otherNumber: return .number
        default: return .other
        }
    }
}
