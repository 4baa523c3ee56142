import Foundation
import XCTest

@testable import KdcCore

final class BundleTests: XCTestCase {
    private var copy = URL(fileURLWithPath: "/")

    override func setUpWithError() throws {
        copy = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.copyItem(at: emoji, to: copy)
    }

    override func tearDownWithError() throws { try FileManager.default.removeItem(at: copy) }

    func testTheIdIsTheOneOnTheCard() throws {
        let card = try String(contentsOf: emoji.appendingPathComponent("README.md"), encoding: .utf8)
        XCTAssertTrue(card.contains("Bundle id `\(try open(emoji).manifest.id)`"))
    }

    func testABundleForAnotherRuntime() {
        says("made for onnx; this app runs bundles for coreml") { try open(emoji, runtime: "coreml") }
    }

    func testTooLittleMemory() {
        says("64 MiB are free. Close other apps") { try open(emoji, freeMib: 64) }
    }

    func testDamagedShortAndMissingFiles() throws {
        let file = copy.appendingPathComponent("unet/model.onnx")
        var bytes = try Data(contentsOf: file)
        bytes[100_000] &+= 1
        try bytes.write(to: file)
        says("unet/model.onnx is damaged") { try open(copy) }
        try bytes.prefix(1000).write(to: file)
        says("unet/model.onnx has 1000 bytes and should have") { try open(copy) }
        try FileManager.default.removeItem(at: file)
        says("unet/model.onnx is missing") { try open(copy) }
    }

    func testManifestsThatCannotBeMeant() throws {
        let file = copy.appendingPathComponent("manifest.json")
        let text = try String(contentsOf: file, encoding: .utf8)
        let broken = [
            (String(text.prefix(500)), "not valid at byte"),
            (text.replacingOccurrences(of: "\"format\": 1", with: "\"format\": 2"), "newer than the app"),
            (text.replacingOccurrences(of: "\"steps\": 4", with: "\"steps\": \"4\""), "pipeline.steps must be a whole number"),
            (text.replacingOccurrences(of: "\"tokens\": 77,", with: ""), "has no 'tokens'"),
            (text.replacingOccurrences(of: "golden/golden.json", with: "../golden.json"), "outside the bundle"),
            (
                text.replacingOccurrences(of: "\"unet/model.onnx\": {", with: "\"unet/other.onnx\": {"),
                "vouches for no unet/model.onnx"
            ),
        ]
        for (changed, message) in broken {
            try changed.write(to: file, atomically: true, encoding: .utf8)
            says(message) { try open(copy) }
        }
        try FileManager.default.removeItem(at: file)
        says("no manifest.json") { try open(copy) }
    }

    func testALongPromptIsCutAndThePersonTold() throws {
        let tokenizer = try Tokenizer(emoji.appendingPathComponent("tokenizer"), tokens: 77)
        XCTAssertNil(tokenizer("red apple").notice)
        let long = String(repeating: "very long ", count: 60)
        XCTAssertEqual(tokenizer(long).notice, "The prompt is 165 tokens too long; its end was left out.")
    }

    private func says(_ message: String, line: UInt = #line, _ work: () throws -> VerifiedBundle) {
        XCTAssertThrowsError(try work(), line: line) { error in
            let found = (error as? Problem)?.message ?? "\(error)"
            XCTAssertTrue(found.contains(message), "'\(found)' does not say '\(message)'", line: line)
        }
    }
}
