from nv_embed.cli import main

main()
