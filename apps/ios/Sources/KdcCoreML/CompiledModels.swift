#if canImport(CoreML)
import CoreML
import Foundation
import KdcCore

/// `.mlmodelc` folders, made on this device and kept in its caches by bundle id; they can be deleted at any time.
public struct CompiledModels {
    private let bundle: VerifiedBundle
    private let folder: URL

    public init(_ bundle: VerifiedBundle) throws {
        self.bundle = bundle
        let caches = try FileManager.default.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let system = ProcessInfo.processInfo.operatingSystemVersionString // a new one compiles anew
        folder = caches.appendingPathComponent("kdc/\(bundle.manifest.id)/\(system)")
    }

    /// A component's, in the order they are called; compiling takes seconds to minutes, the first time only.
    public func urls(_ component: String) throws -> [URL] {
        let files = bundle.manifest.components[component] ?? []
        let packages = Set(files.compactMap { file -> String? in
            guard let end = file.range(of: ".mlpackage/") else { return nil }
            return String(file[..<end.lowerBound]) + ".mlpackage"
        })
        guard !packages.isEmpty else { throw Problem.damaged("The bundle has no \(component) package. Fetch it again.") }
        return try packages.sorted().map { try compiled(bundle.file($0)) }
    }

    /// All of them with vocabulary beside: what Apple's StableDiffusion package reads.
    public func resources() throws -> URL {
        for component in bundle.manifest.components.keys { _ = try urls(component) }
        for name in ["vocab.json", "merges.txt"] {
            let target = folder.appendingPathComponent(name)
            if !FileManager.default.fileExists(atPath: target.path) {
                try FileManager.default.copyItem(at: bundle.file("tokenizer/\(name)"), to: target)
            }
        }
        return folder
    }

    private func compiled(_ package: URL) throws -> URL {
        let name = package.deletingPathExtension().lastPathComponent
        let target = folder.appendingPathComponent("\(name).mlmodelc")
        if FileManager.default.fileExists(atPath: target.path) { return target }
        do {
            let made = try MLModel.compileModel(at: package)
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try FileManager.default.moveItem(at: made, to: target)
            return target
        } catch {
            throw Problem.cannotRun("\(name) cannot be compiled on this device (\(error.localizedDescription)).")
        }
    }
}
#endif
