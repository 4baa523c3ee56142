import Foundation
import XCTest

@testable import KdcCore

#if canImport(CryptoKit)
import CryptoKit
#endif

/// The repository's root, three folders above this one's.
let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../../..").standardized
let emoji = root.appendingPathComponent("kdc_edge/data/emoji-64")

func vectors() throws -> Json {
    try Json(Data(contentsOf: root.appendingPathComponent("apps/vectors.json")), name: "vectors.json")
}

func open(_ folder: URL, runtime: String = "onnx", freeMib: Int = 4096) throws -> VerifiedBundle {
    try VerifiedBundle(folder, runtime: runtime, freeMib: freeMib, hashing: Digests())
}

/// CryptoKit's on a Mac; on Linux the system's sha256sum.
struct Digests: Hashing {
    func data(_ data: Data) throws -> String {
        #if canImport(CryptoKit)
        return SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
        #else
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try data.write(to: file)
        defer { try? FileManager.default.removeItem(at: file) }
        return try self.file(file)
        #endif
    }

    func file(_ url: URL) throws -> String {
        #if canImport(CryptoKit)
        return try data(Data(contentsOf: url))
        #else
        let process = Process()
        let pipe = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/sha256sum")
        process.arguments = [url.path]
        process.standardOutput = pipe
        try process.run()
        let out = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return String(decoding: out.prefix(64), as: UTF8.self)
        #endif
    }
}

/// Numbers of the right shape, a function of the inputs alone.
final class FakeNetworks: Networks {
    let provider = "fake"
    let spec: PipelineSpec
    var calls = 0
    var broken = false

    init(_ spec: PipelineSpec) { self.spec = spec }

    func encode(_ ids: [[Int]]) throws -> [Float] {
        ids.flatMap { row in row.flatMap { Array(repeating: Float($0 % 97) / 97, count: 256) } }
    }

    func predict(_ samples: [Float], timestep: Float, text: [Float]) throws -> [Float] {
        calls += 1
        return samples.indices.map { 0.5 * samples[$0] + text[$0 % text.count] - timestep / 5000 }
    }

    func decode(_ latents: [Float]) throws -> [Float] {
        (0..<3 * spec.width * spec.height).map { broken ? .nan : latents[$0 % latents.count] }
    }
}
