#if canImport(CoreML)
import CoreML
import CryptoKit
import Foundation
import KdcCore

#if os(iOS)
import os
#endif

/// What Core ML may use; it still decides operator by operator.
public enum ComputeUnits: String, CaseIterable, Identifiable {
    case all, neuralEngine, gpu, cpu

    public var id: String { rawValue }

    public var label: String {
        switch self {
        case .all: return "Core ML's choice"
        case .neuralEngine: return "Neural Engine and CPU"
        case .gpu: return "GPU and CPU"
        case .cpu: return "CPU"
        }
    }

    var value: MLComputeUnits {
        switch self {
        case .all: return .all
        case .neuralEngine: return .cpuAndNeuralEngine
        case .gpu: return .cpuAndGPU
        case .cpu: return .cpuOnly
        }
    }
}

/// CryptoKit's SHA-256, a megabyte at a time.
public struct Digests: Hashing {
    public init() {}

    public func data(_ data: Data) throws -> String { hex(SHA256.hash(data: data)) }

    public func file(_ url: URL) throws -> String {
        let handle = try FileHandle(forReadingFrom: url)
        defer { try? handle.close() }
        var hasher = SHA256()
        while let chunk = try handle.read(upToCount: 1 << 20), !chunk.isEmpty { hasher.update(data: chunk) }
        return hex(hasher.finalize())
    }

    private func hex(_ digest: SHA256.Digest) -> String { digest.map { String(format: "%02x", $0) }.joined() }
}

/// MiB that this app may still take before the system ends it.
public func freeMemoryMib() -> Int {
    #if os(iOS)
    return Int(os_proc_available_memory() >> 20)
    #else
    return Int(ProcessInfo.processInfo.physicalMemory >> 21) // on a Mac: half of what there is
    #endif
}
#endif
