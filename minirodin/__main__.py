from minirodin.cli import main

main()
