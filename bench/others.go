package main

// others are the scenarios in which other systems are compared.
func others() []scenario { return nil }
