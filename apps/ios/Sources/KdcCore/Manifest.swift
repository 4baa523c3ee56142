import Foundation

/// `pipeline.betas`: the noise schedule.
public struct Betas {
    let schedule: String
    let start: Double
    let end: Double
    let trainSteps: Int
    let spacing: String
    let stepsOffset: Int
    let setAlphaToOne: Bool

    public init(_ json: Json) throws {
        schedule = try json.get("schedule").string()
        start = try json.get("start").double()
        end = try json.get("end").double()
        trainSteps = try json.get("train_steps").int()
        spacing = try json.get("spacing").string()
        stepsOffset = try json.get("steps_offset").int()
        setAlphaToOne = try json.get("set_alpha_to_one").boolean()
    }
}

/// `pipeline`: how the components make a picture.
public struct PipelineSpec {
    public let height: Int
    public let width: Int
    public let latent: [Int]
    public let latentScaling: Double
    public let tokens: Int
    public let predicts: String
    public let betas: Betas
    public var sampler: String
    public let steps: Int
    public let guidance: Double

    /// C·H·W.
    public var latentSize: Int { latent.reduce(1, *) }

    public init(_ json: Json) throws {
        let size = try json.get("image_size").items().map { try $0.int() }
        guard size.count == 2 else { throw Problem.damaged("manifest.json pipeline.image_size must have two numbers.") }
        (height, width) = (size[0], size[1])
        latent = try json.get("latent").items().map { try $0.int() }
        latentScaling = try json.get("latent_scaling").double()
        tokens = try json.get("tokens").int()
        predicts = try json.get("prediction_type").string()
        betas = try Betas(json.get("betas"))
        sampler = try json.get("sampler").string()
        steps = try json.get("steps").int()
        guidance = try json.get("guidance").double()
    }
}

public struct FileEntry {
    public let sha256: String
    public let bytes: Int
}

/// SHA-256, hexadecimal: CryptoKit's on Apple's systems.
public protocol Hashing {
    func file(_ url: URL) throws -> String
    func data(_ data: Data) throws -> String
}

/// What an app needs of manifest.json; docs/bundle.md has all of it.
public struct Manifest {
    public static let format = 1

    public let name: String
    public let runtime: String
    public let precision: String
    public let pipeline: PipelineSpec
    /// By component, the files of it.
    public let components: [String: [String]]
    public let files: [String: FileEntry]
    public let memoryMib: Int?
    public let id: String

    public init(_ data: Data, hashing: Hashing) throws {
        let json = try Json(data, name: "manifest.json")
        let format = try json.get("format").int()
        guard format <= Manifest.format else { throw Problem.damaged("This bundle is newer than the app. Update the app.") }
        guard format == Manifest.format else {
            throw Problem.damaged("This bundle is too old for the app. Convert its model again.")
        }
        name = try json.get("name").string()
        runtime = try json.get("runtime").string()
        precision = try json.get("precision").string()
        pipeline = try PipelineSpec(json.get("pipeline"))
        components = try json.get("components").fields().mapValues { try $0.get("files").items().map { try $0.string() } }
        files = try json.get("files").fields().mapValues {
            FileEntry(sha256: try $0.get("sha256").string(), bytes: try $0.get("bytes").int())
        }
        let memory = try json.get("requires").get("memory_mib")
        memoryMib = memory.isNull ? nil : try memory.int()
        // what decides the pictures
        let parts = try ["components", "files", "pipeline"].map { "\(Json.quote($0)):\(try json.get($0).canonical())" }
        id = try hashing.data(Data(("{" + parts.joined(separator: ",") + "}").utf8))
    }
}

/// A bundle's folder, every file of it as the manifest says.
public struct VerifiedBundle {
    public let folder: URL
    public let manifest: Manifest

    /// Throws Problem; `freeMib` is what the device can spare now, `progress` goes from 0 to 1.
    public init(
        _ folder: URL, runtime: String, freeMib: Int, hashing: Hashing, progress: (Double) -> Void = { _ in }
    ) throws {
        guard let data = try? Data(contentsOf: folder.appendingPathComponent("manifest.json")) else {
            throw Problem.damaged("This folder is no bundle: it has no manifest.json.")
        }
        let manifest = try Manifest(data, hashing: hashing)
        guard manifest.runtime == runtime else {
            throw Problem.otherRuntime(
                "This bundle is made for \(manifest.runtime); this app runs bundles for \(runtime). Fetch one for \(runtime)."
            )
        }
        if let need = manifest.memoryMib, need > freeMib {
            throw Problem.tooLittleMemory(
                "This bundle needs \(need) MiB of memory, \(freeMib) MiB are free. Close other apps, or fetch a smaller bundle."
            )
        }
        self.folder = folder
        self.manifest = manifest
        try verify(hashing, progress)
    }

    public func file(_ name: String) -> URL { folder.appendingPathComponent(name) }

    private func verify(_ hashing: Hashing, _ progress: (Double) -> Void) throws {
        for name in manifest.components.values.joined() where manifest.files[name] == nil {
            throw Problem.damaged("The manifest vouches for no \(name). Fetch the bundle again.")
        }
        for (name, entry) in manifest.files.sorted(by: { $0.key < $1.key }) {
            guard VerifiedBundle.isSafe(name) else {
                throw Problem.damaged("The manifest lists '\(name)', which is outside the bundle.")
            }
            guard let seen = try? FileManager.default.attributesOfItem(atPath: file(name).path)[.size] as? NSNumber else {
                throw Problem.damaged("\(name) is missing. Fetch the bundle again.")
            }
            guard seen.intValue == entry.bytes else {
                throw Problem.damaged("\(name) has \(seen) bytes and should have \(entry.bytes). Fetch the bundle again.")
            }
        }
        let total = max(1, manifest.files.values.reduce(0) { $0 + $1.bytes })
        var done = 0
        for (name, entry) in manifest.files {
            guard try hashing.file(file(name)) == entry.sha256 else {
                throw Problem.damaged("\(name) is damaged: its SHA-256 is not the manifest's. Fetch the bundle again.")
            }
            done += entry.bytes
            progress(Double(done) / Double(total))
        }
    }

    static func isSafe(_ name: String) -> Bool {
        let parts = name.split(separator: "/", omittingEmptySubsequences: false)
        return !name.contains { "\\:\0".contains($0) } && !parts.contains { ["", ".", ".."].contains($0) }
    }
}
