// Looks names up by Go's own resolver, which asks without the C library: lookup [@SERVER] addresses|text NAME... prints
// one address a line, or how many texts there are, or what went wrong. Without a server it asks those of the machine.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	resolver := &net.Resolver{PreferGo: true}
	words := os.Args[1:]
	if words[0][0] == '@' {
		server := net.JoinHostPort(words[0][1:], "53")
		resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, server)
		}
		words = words[1:]
	}
	look := resolver.LookupHost
	if words[0] == "text" {
		look = resolver.LookupTXT
	}
	failed := 0
	for _, name := range words[1:] {
		found, err := look(context.Background(), name)
		if err != nil {
			fmt.Println(err)
			failed = 1
		} else if words[0] == "text" {
			fmt.Println(len(found), "texts")
		} else {
			for _, address := range found {
				fmt.Println(address)
			}
		}
	}
	os.Exit(failed)
}
