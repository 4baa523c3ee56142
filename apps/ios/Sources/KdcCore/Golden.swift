import Foundation

/// An array of one of golden/'s types: I64, F32 or U8, as doubles.
public struct Stored {
    public let dtype: String
    public let shape: [Int]
    public let values: [Double]

    /// Row `p` of the first axis.
    func row(_ p: Int) -> ArraySlice<Double> {
        let size = values.count / shape[0]
        return values[p * size..<(p + 1) * size]
    }
}

/// golden/ of a bundle; docs/conformance.md says what is in it, byte for byte.
public struct Golden {
    public let prompts: [String]
    public let texts: [String]
    public let sampler: String
    public let steps: Int
    public let guidance: Double
    public let seed: UInt32
    public let negative: String
    public let tolerances: [String: Double]
    public let arrays: [String: Stored]

    public init(_ bundle: VerifiedBundle) throws {
        let json = try Json(Data(contentsOf: bundle.file("golden/golden.json")), name: "golden.json")
        prompts = try json.get("prompts").items().map { try $0.string() }
        texts = try json.get("texts").items().map { try $0.string() }
        sampler = try json.get("sampler").string()
        steps = try json.get("steps").int()
        guidance = try json.get("guidance").double()
        seed = UInt32(try json.get("seed").int())
        negative = try json.get("negative").string()
        tolerances = try json.get("tolerances").fields().mapValues { try $0.double() }
        arrays = try safetensors(bundle.file("golden/vectors.safetensors"))
    }

    public func get(_ name: String) throws -> Stored {
        guard let array = arrays[name] else { throw Problem.damaged("golden/ has no '\(name)'. Convert the model again.") }
        return array
    }
}

/// Every array of a safetensors file: 8 bytes of header length, JSON, data, all little-endian.
func safetensors(_ url: URL) throws -> [String: Stored] {
    let bytes = try [UInt8](Data(contentsOf: url))
    let damaged = Problem.damaged("\(url.lastPathComponent) is damaged. Fetch the bundle again.")
    func word(_ at: Int, _ size: Int) -> UInt64 { (0..<size).reduce(0) { $0 | UInt64(bytes[at + $1]) << (8 * UInt64($1)) } }
    guard bytes.count >= 8, word(0, 8) <= UInt64(bytes.count - 8) else { throw damaged }
    let start = 8 + Int(word(0, 8))
    let header = try Json(Data(bytes[8..<start]), name: url.lastPathComponent).fields()
    return try header.filter { $0.key != "__metadata__" }.mapValues { entry in
        let shape = try entry.get("shape").items().map { try $0.int() }
        let at = start + (try entry.get("data_offsets").items().first?.int() ?? 0)
        let count = shape.reduce(1, *)
        let dtype = try entry.get("dtype").string()
        guard let size = ["I64": 8, "F32": 4, "U8": 1][dtype] else {
            throw Problem.damaged("\(url.lastPathComponent) holds \(dtype). Update the app.")
        }
        guard at >= start, count >= 0, at + count * size <= bytes.count else { throw damaged }
        let values = (0..<count).map { i -> Double in
            let bits = word(at + i * size, size)
            switch dtype {
            case "I64": return Double(Int64(bitPattern: bits))
            case "F32": return Double(Float(bitPattern: UInt32(bits)))
            default: return Double(bits)
            }
        }
        return Stored(dtype: dtype, shape: shape, values: values)
    }
}
