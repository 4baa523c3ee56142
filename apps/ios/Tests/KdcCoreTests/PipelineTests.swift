import Foundation
import XCTest

@testable import KdcCore

final class PipelineTests: XCTestCase {
    private func pipeline() throws -> (KdcCore.VerifiedBundle, KdcCore.Pipeline, FakeNetworks) {
        let bundle = try open(emoji)
        let networks = FakeNetworks(bundle.manifest.pipeline)
        let tokenizer = try Tokenizer(emoji.appendingPathComponent("tokenizer"), tokens: 77)
        return (bundle, KdcCore.Pipeline(bundle.manifest.pipeline, tokenizer, networks), networks)
    }

    func testAPictureWithProgress() throws {
        let (_, pipeline, _) = try pipeline()
        var seen: [[Int]] = []
        let picture = try pipeline.generate(Request("red apple", seed: 3), progress: { seen.append([$0, $1]) })
        XCTAssertEqual(seen, (0...4).map { [$0, 4] })
        XCTAssertEqual(picture.rgb.count, 3 * 64 * 64)
        XCTAssertEqual(picture.rgb, try pipeline.generate(Request("red apple", seed: 3)).rgb)
        XCTAssertNotEqual(picture.rgb, try pipeline.generate(Request("red apple", seed: 4)).rgb)
    }

    func testCancelledBetweenTwoSteps() throws {
        let (_, pipeline, networks) = try pipeline()
        XCTAssertThrowsError(try pipeline.generate(Request("red apple"), cancelled: { networks.calls == 2 })) {
            XCTAssertEqual($0 as? Problem, .cancelled)
        }
        XCTAssertEqual(networks.calls, 2)
    }

    func testGuidanceOneIsThePromptAloneZeroTheNegativeOne() throws {
        let (_, pipeline, _) = try pipeline()
        let alone = try pipeline.generate(Request("rocket", guidance: 1)).rgb
        XCTAssertEqual(alone, try pipeline.generate(Request("red apple", guidance: 0, negative: "rocket")).rgb)
        XCTAssertNotEqual(alone, try pipeline.generate(Request("rocket", guidance: 3)).rgb)
    }

    func testANetworkWithoutNumbers() throws {
        let (_, pipeline, networks) = try pipeline()
        networks.broken = true
        XCTAssertThrowsError(try pipeline.generate(Request("red apple"))) {
            XCTAssertTrue((($0 as? Problem)?.message ?? "").contains("no picture on fake"))
        }
    }

    func testStepsThatCannotBe() throws {
        let (_, pipeline, _) = try pipeline()
        for steps in [0, -1, 5000] { XCTAssertThrowsError(try pipeline.generate(Request("", steps: steps))) }
    }

    func testTheFakePassesWhatNeedsNoNetworkAndNothingElse() throws {
        let (bundle, pipeline, _) = try pipeline()
        let conformance = try Conformance(bundle, pipeline)
        let verdicts = try conformance.run()
        XCTAssertEqual(verdicts.map { $0.stage }, Conformance.stages)
        XCTAssertEqual(verdicts.filter { $0.passed }.map { $0.stage }, Array(Conformance.stages.prefix(5)))
        if let file = ProcessInfo.processInfo.environment["KDC_RESULTS"] {
            try conformance.results(app: "the tests, fake", verdicts).write(toFile: file, atomically: true, encoding: .utf8)
        }
    }
}
