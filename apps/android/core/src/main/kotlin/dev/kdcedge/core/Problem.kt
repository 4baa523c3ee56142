package dev.kdcedge.core

/** What can go wrong, each in words for the person who holds the phone. An app catches this and shows `message`. */
sealed class Problem(message: String) : Exception(message) {
    class OtherRuntime(message: String) : Problem(message)
    class Damaged(message: String) : Problem(message)
    class TooLittleMemory(message: String) : Problem(message)
    class NotFetched(message: String) : Problem(message)
    class CannotRun(message: String) : Problem(message)
    class Cancelled : Problem("Stopped; no picture was made.")
}
