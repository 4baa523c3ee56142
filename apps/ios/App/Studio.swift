import Foundation
import KdcCore
import KdcCoreML
import Observation
import SwiftUI

/// What the screens show, and the one place that does the work, off the main thread and one thing at a time.
@Observable @MainActor
final class Studio {
    var units = ComputeUnits.all { didSet { networks = nil } }
    var lowMemory = false { didSet { networks = nil } }
    var useApplePackage = false
    private(set) var bundle: VerifiedBundle?
    private(set) var status = "Choose a bundle: a folder made by python -m convert.coreml."
    private(set) var problem: String?
    private(set) var picture: CGImage?
    private(set) var progress = 0.0
    private(set) var busy = false
    private(set) var verdicts: [Verdict] = []
    private(set) var results: URL?
    private var networks: CoreMLNetworks?
    private let stop = Flag()

    var offersApplePackage: Bool { bundle.map { AppleStableDiffusion.fits($0.manifest.pipeline) } ?? false }

    /// The bundle in the app's own folder `Bundle`, if it was built with one.
    func openShipped() async {
        if bundle == nil, let folder = Bundle.main.url(forResource: "Bundle", withExtension: nil) { await open(folder) }
    }

    func open(_ folder: URL) async {
        await work("Checking the bundle…") { report in
            let scoped = folder.startAccessingSecurityScopedResource()
            defer { if scoped { folder.stopAccessingSecurityScopedResource() } }
            let kept = try Studio.keep(folder)
            return try VerifiedBundle(kept, runtime: "coreml", freeMib: freeMemoryMib(), hashing: Digests(), progress: report)
        } then: { opened in
            self.networks = nil
            self.bundle = opened
            self.status = "\(opened.manifest.name), \(opened.manifest.precision)"
        }
    }

    func draw(_ request: Request) async {
        guard let bundle else { return }
        if useApplePackage, offersApplePackage {
            let (low, units, stop) = (lowMemory, units, stop)
            await work("Drawing with Apple's package…") { report in
                try AppleStableDiffusion.draw(request, bundle, units, low, cancelled: { stop.isSet }, progress: report)
            } then: { self.picture = $0 }
            return
        }
        let (start, stop) = (loader(), stop)
        await work("Loading; the first time it compiles…") { report in
            let networks = try start()
            let pipeline = try Studio.pipeline(bundle, networks)
            let picture = try pipeline.generate(request, cancelled: { stop.isSet }, progress: { report(Double($0) / Double($1)) })
            return (networks, picture)
        } then: { networks, drawn in
            self.networks = networks
            self.picture = drawn.image
            self.status = drawn.notice ?? "Drawn on: \(networks.provider)"
        }
    }

    func conform() async {
        guard let bundle else { return }
        let start = loader()
        verdicts = []
        await work("Running the golden vectors…") { report in
            let networks = try start()
            let conformance = try Conformance(bundle, Studio.pipeline(bundle, networks))
            var done = 0.0
            let verdicts = try conformance.run { _ in
                done += 1
                report(done / Double(Conformance.stages.count))
            }
            let file = FileManager.default.temporaryDirectory.appendingPathComponent("results.json")
            let text = conformance.results(app: "kdc-edge for iOS, \(networks.provider)", verdicts)
            try text.write(to: file, atomically: true, encoding: .utf8)
            return (networks, verdicts, file)
        } then: { networks, verdicts, file in
            (self.networks, self.verdicts, self.results) = (networks, verdicts, file)
            self.status = verdicts.allSatisfy(\.passed) ? "Conforms on: \(networks.provider)" : "Does not conform."
        }
    }

    func cancel() { stop.set(true) }

    /// The networks that are loaded, or a way to load them.
    private func loader() -> @Sendable () throws -> CoreMLNetworks {
        let loaded = networks.map { Unchecked($0) }
        guard let bundle else { return { throw Problem.damaged("No bundle is open.") } }
        let (units, lowMemory) = (units, lowMemory)
        return { try loaded?.value ?? CoreMLNetworks(bundle, units: units, lowMemory: lowMemory) }
    }

    private func work<T>(
        _ what: String, _ job: @escaping @Sendable (@escaping (Double) -> Void) throws -> T, then: (T) -> Void
    ) async {
        guard !busy else { return }
        (busy, problem, progress, status) = (true, nil, 0, what)
        stop.set(false)
        defer { busy = false }
        do {
            let report: (Double) -> Void = { value in Task { @MainActor in self.progress = value } }
            let task = Task.detached(priority: .userInitiated) { Unchecked(try job(report)) }
            then(try await task.value.value)
        } catch {
            problem = (error as? Problem)?.message ?? error.localizedDescription
            status = bundle?.manifest.name ?? ""
        }
    }

    private nonisolated static func pipeline(_ bundle: VerifiedBundle, _ networks: Networks) throws -> Pipeline {
        let spec = bundle.manifest.pipeline
        return Pipeline(spec, try Tokenizer(bundle.file("tokenizer"), tokens: spec.tokens), networks)
    }

    /// A copy in the app's own documents; the app's shipped folder stays where it is.
    private nonisolated static func keep(_ folder: URL) throws -> URL {
        if folder.path.hasPrefix(Bundle.main.bundlePath) { return folder }
        let files = FileManager.default
        let documents = try files.url(for: .documentDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let target = documents.appendingPathComponent(folder.lastPathComponent)
        if folder.standardizedFileURL != target.standardizedFileURL {
            try? files.removeItem(at: target)
            try files.copyItem(at: folder, to: target)
        }
        return target
    }
}

/// Set by one thread, read by another.
final class Flag: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false

    var isSet: Bool { lock.withLock { value } }

    func set(_ new: Bool) { lock.withLock { value = new } }
}

/// Handed from the thread that made it to the one that shows it, and used by no other.
struct Unchecked<T>: @unchecked Sendable {
    let value: T

    init(_ value: T) { self.value = value }
}

extension Picture {
    var image: CGImage? {
        guard let data = CGDataProvider(data: Data(rgb) as CFData) else { return nil }
        return CGImage(
            width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 24, bytesPerRow: 3 * width,
            space: CGColorSpaceCreateDeviceRGB(), bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.none.rawValue),
            provider: data, decode: nil, shouldInterpolate: false, intent: .defaultIntent)
    }
}
