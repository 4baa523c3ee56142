import Foundation

/// What can go wrong, each in words for the person who holds the phone. An app catches this and shows `message`.
public enum Problem: Error, Equatable, LocalizedError {
    case otherRuntime(String)
    case damaged(String)
    case tooLittleMemory(String)
    case cannotRun(String)
    case cancelled

    public var message: String {
        switch self {
        case .otherRuntime(let text), .damaged(let text), .tooLittleMemory(let text), .cannotRun(let text): return text
        case .cancelled: return "Stopped; no picture was made."
        }
    }

    public var errorDescription: String? { message }
}
